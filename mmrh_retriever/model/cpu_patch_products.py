"""Convolutions over patches that are cut already, run as the matrix products that they are.

Some vision towers are given patches, and turn each into a vector by a convolution as large as the patch. torch's
convolutions take far longer for that than one matrix product: 80 times in bfloat16 on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn
from torch.nn import functional

Convolution = nn.Conv2d | nn.Conv3d


def patch_convolutions(module: nn.Module) -> list[Convolution]:
    """The convolutions of a module that may be given whole patches: their kernels do not overlap, nothing is padded."""
    return [found for found in module.modules() if isinstance(found, Convolution) and _takes_patches(found)]


def _takes_patches(found: Convolution) -> bool:
    return (
        type(found) in (nn.Conv2d, nn.Conv3d)
        and found.stride == found.kernel_size
        and set(found.dilation) == {1}
        and found.groups == 1
        and found.padding != "same"
        and not any(found.padding)
    )


@contextmanager
def as_products(convolutions: Sequence[Convolution]) -> Iterator[None]:
    """While it lasts, these convolutions compute what they are given in whole patches by a matrix product.

    One whose ``forward`` somebody has replaced (offloaded weights, quantisation) stays as it is.
    """
    with ExitStack() as stack:
        for convolution in convolutions:
            if "forward" not in vars(convolution):
                stack.enter_context(_as_product(convolution))
        yield


@contextmanager
def _as_product(convolution: Convolution) -> Iterator[None]:
    usual: Callable[[Tensor], Tensor] = convolution.forward

    def forward(patches: Tensor) -> Tensor:
        if patches.dim() != convolution.weight.dim() or patches.shape[2:] != convolution.weight.shape[2:]:
            return usual(patches)
        vectors = functional.linear(patches.flatten(1), convolution.weight.flatten(1), convolution.bias)
        return vectors.view(*vectors.shape, *[1] * (patches.dim() - 2))

    object.__setattr__(convolution, "forward", forward)
    try:
        yield
    finally:
        object.__delattr__(convolution, "forward")
