"""Convolutions of whole patches as products: the same numbers, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmrh_retriever import Reranker
from mmrh_retriever.model.cpu_patch_products import as_products, patch_convolutions
from mmrh_retriever.ranking.inputs import as_pages
from tests.factories import VISION, page_image, tiny


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(2, 4, 4), (4, 6)])
def test_a_convolution_of_patches_is_a_product(shape: tuple[int, ...], bias: bool) -> None:
    kind = nn.Conv3d if len(shape) == 3 else nn.Conv2d
    convolution = kind(3, 8, shape, stride=shape, bias=bias)
    patches = torch.randn(11, 3, *shape)
    larger = torch.randn(2, 3, *(2 * side for side in shape))
    expected, uncut = convolution(patches), convolution(larger)
    with as_products(patch_convolutions(nn.Sequential(convolution))):
        assert "forward" in vars(convolution)
        torch.testing.assert_close(convolution(patches), expected, rtol=0, atol=1e-5)
        assert torch.equal(convolution(larger), uncut)
    assert "forward" not in vars(convolution)
    assert torch.equal(convolution(patches), expected)


def test_other_convolutions_are_left_alone() -> None:
    kept = [
        nn.Conv2d(3, 8, 4, stride=2),
        nn.Conv2d(3, 8, 4, stride=4, padding=1),
        nn.Conv2d(4, 8, 4, stride=4, groups=2),
        nn.Conv2d(3, 8, 4, stride=4, dilation=2),
        nn.Conv2d(3, 8, 1, padding="same"),
        nn.Conv1d(3, 8, 4, stride=4),
        nn.LazyConv2d(8, 4, stride=4),
    ]
    assert patch_convolutions(nn.Sequential(*kept)) == []
    replaced = nn.Conv2d(3, 8, 4, stride=4)
    replaced.forward = lambda patches: patches  # type: ignore[method-assign]
    with as_products([replaced]):
        assert replaced(5) == 5
    assert "forward" in vars(replaced)


@pytest.mark.parametrize("name", VISION)
def test_every_family_sees_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny(name)
    pages = as_pages([page_image(1), page_image(2)])

    def features() -> list[torch.Tensor]:
        reranker = Reranker(made.model, (made.tokenizer, made.image_processor), "all", check=False)
        segments = [reranker.prompter.page_segment(page, 1) for page in pages]
        return [tensor for own in reranker.vision.of(segments) for tensor in (own.pooled, *own.deep)]

    products = features()
    monkeypatch.setattr("mmrh_retriever.model.vision.patch_convolutions", lambda _: [])
    for product, convolved in zip(products, features(), strict=True):
        torch.testing.assert_close(product, convolved, rtol=0, atol=1e-4)
    if name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        assert patch_convolutions(made.model), "patches come cut"
