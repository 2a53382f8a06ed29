"""The check of a model's attention, once per model: what we record is what plain eager attention gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmrh_retriever.errors import AttentionCaptureError, MMRHError, UnsupportedModelError
from mmrh_retriever.model.attention_seam import AttentionSeam, query_heads, set_implementation
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.own_types import own_types
from mmrh_retriever.model.recording import HeadsByLayer, Recording

_TOKENS = 16


def check_attention(backbone: Backbone, ids: list[int]) -> None:
    """Check the seam on the first tokens of the prompt prefix, once per model.

    :class:`UnsupportedModelError` where the model itself fails on them; other errors as for :func:`verify`.
    """
    seam = backbone.seam
    with seam.lock, torch.inference_mode(), own_types():
        if seam.checked:
            return
        short = torch.tensor([ids[:_TOKENS]], device=backbone.device)

        def run() -> Tensor:
            try:
                return backbone.base(input_ids=short, use_cache=False).last_hidden_state  # type: ignore[no-any-return]
            except RuntimeError as error:
                if isinstance(error, (MMRHError, torch.OutOfMemoryError)):
                    raise
                raise UnsupportedModelError(
                    f"{backbone.name} can't be run as it was loaded, not even on a short text: {error}. "
                    "Load it in another way: whole, in one dtype, on one device."
                ) from error

        def eager() -> Any:
            name = backbone.text_config._attn_implementation
            set_implementation(backbone.decoder, "eager")
            try:
                return backbone.base(input_ids=short, use_cache=False, output_attentions=True).attentions
            finally:
                set_implementation(backbone.decoder, name)

        verify(seam, run, eager, tolerance=1e-4 if backbone.dtype is torch.float32 else 0.1)
        seam.checked = True


def verify(
    seam: AttentionSeam, run: Callable[[], Tensor], eager_attentions: Callable[[], Any], *, tolerance: float
) -> float:
    """Recorded rows sum to one and equal eager attention's, and ablation moves the output.

    ``run`` gives the last hidden states of a short input, ``(1, tokens, width)``; ``eager_attentions`` gives one tensor
    ``(1, heads, tokens, tokens)`` per layer. Returns the largest difference between our rows and eager's.
    """
    heads = [(layer, head) for layer in seam.modules for head in range(query_heads(seam.modules[layer]))]
    plain = run()
    length = int(plain.shape[1])
    recording = Recording(HeadsByLayer.of(heads), [range(length - 1, length)], torch.arange(length), length)
    with seam.running(recording=recording):
        run()
    total = recording.mass.sum(dim=2)
    if float((total - 1).abs().max()) > 1e-3:
        raise AttentionCaptureError(
            f"Attention rows sum to {float(total.min()):.4f} to {float(total.max()):.4f}, expected 1. "
            "This attention backend masks or scales in a way that we don't see; use attn_implementation='sdpa'."
        )
    expected = torch.stack([layer[0, :, -1].float().cpu() for layer in eager_attentions()]).flatten(0, 1)
    difference = float((recording.mass[0] - expected).abs().max())
    if not difference <= tolerance:
        raise AttentionCaptureError(
            f"Recorded attention differs from eager attention by {difference:.2e}, at most {tolerance:.0e} was "
            "expected. Use another attn_implementation or dtype, and report the model and its versions."
        )
    first = heads[0][0]
    with seam.ablating(heads[: query_heads(seam.modules[first])]):
        ablated = run()
    if torch.equal(ablated, plain):
        raise AttentionCaptureError(
            f"Ablating every head of layer {first} left the output as it was; expected it to move. "
            "The model does not use the output of the attention function."
        )
    return difference
