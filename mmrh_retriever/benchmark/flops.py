"""Floating-point operations of passes, from the shapes of a model's weights: two per weight and row, and attention's.

Norms, activations, positions and softmax are left out: they are few beside the products. Attention counts the pairs of
tokens that the mask leaves, also where a kernel computes more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmrh_retriever.heads.scores import HeadId
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.prompts import PromptSegment

_IN_BLOCK = re.compile(r"\b(blocks|layers|layer)\.\d+\.")


@dataclass(frozen=True, slots=True)
class LayerFlops:
    """What one decoder layer computes: products per token, all and those that give queries, keys and values alone.

    ``attention`` counts per pair of tokens, of all heads together and as ``head`` of one. ``window`` is how many tokens
    a token sees at most, ``None`` for all.
    """

    linear: int
    before_attention: int
    attention: int
    head: int
    window: int | None

    def of(self, start: int, tokens: int) -> int:
        """A causal pass of some tokens behind ``start`` others."""
        return tokens * self.linear + self.attention * self.pairs(start, tokens)

    def pairs(self, start: int, tokens: int) -> int:
        """Pairs of one of some tokens with one that it sees, itself included, behind ``start`` others."""
        return _pairs(start + tokens, self.window) - _pairs(start, self.window)


def decoder_flops(backbone: Backbone) -> list[LayerFlops]:
    """Of each decoder layer, from the shapes of its weights; these may be on the meta device.

    Of experts, which lie in tensors of three dimensions, those are counted that a token goes through.
    """
    config, layers = backbone.text_config, cast("Any", backbone.decoder).layers
    experts = getattr(config, "num_experts_per_tok", None) or 1
    found = []
    for number in range(backbone.layers):
        weights = [weight for weight in layers[number].parameters() if weight.dim() > 1]
        used = (weight.numel() if weight.dim() == 2 else experts * weight[0].numel() for weight in weights)
        linear = 2 * sum(used)
        attention: Any = backbone.seam.modules.get(number)
        if attention is None:  # a layer of another kind, whose products alone are counted
            found.append(LayerFlops(linear, 0, 0, 0, None))
            continue
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        before = 2 * sum(projection.weight.numel() for projection in projections)
        width = int(attention.head_dim)
        found.append(LayerFlops(linear, before, 4 * width * backbone.heads, 2 * width, backbone.seam.windows[number]))
    return found


def pass_flops(layers: Sequence[LayerFlops], start: int, tokens: int, deepest: int | None = None) -> int:
    """A causal pass of some tokens behind ``start`` others, without an LM head.

    It goes through all layers, or ends once the keys of the layer ``deepest`` are kept.
    """
    if deepest is None:
        return sum(layer.of(start, tokens) for layer in layers)
    return sum(layer.of(start, tokens) for layer in layers[:deepest]) + tokens * layers[deepest].before_attention


def recording_flops(layers: Sequence[LayerFlops], heads: Iterable[HeadId], start: int, tokens: int) -> int:
    """The logits of some heads, formed once more for the rows of some tokens behind ``start`` others."""
    return sum(layers[head.layer].head * layers[head.layer].pairs(start, tokens) for head in heads)


def vision_flops(backbone: Backbone, segment: PromptSegment) -> int:
    """What the vision tower and the projector compute for a page's image."""
    if not segment.inputs:
        return 0
    config = backbone.config.vision_config
    pixels = segment.inputs["pixel_values"]
    side = int(config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0])
    listed = pixels.dim() == 2  # patches one by one, as Qwen-VL takes them
    patches = pixels.shape[0] if listed else pixels.numel() // (3 * side * side)
    alone = patches if listed else pixels.shape[-2] * pixels.shape[-1] // (side * side)  # tiles see themselves alone
    flops = width = 0
    for name, module in backbone.base.named_modules():
        if module is backbone.decoder or name.startswith(f"{backbone.family.decoder}."):
            continue
        weights = sum(own.numel() for own in module.parameters(recurse=False) if own.dim() > 1)
        if isinstance(module, nn.Embedding) or not weights:
            continue
        embeds = isinstance(module, (nn.Conv2d, nn.Conv3d)) and module.kernel_size[-1] == side
        width = int(module.out_channels) if embeds else width
        flops += 2 * weights * (patches if embeds or _IN_BLOCK.search(name) else len(segment.visual))
    depth = int(getattr(config, "depth", None) or config.num_hidden_layers)
    window = getattr(config, "window_size", None) if listed else None
    seen_in_full = len(config.fullatt_block_indexes) if window else depth
    in_window = min((window // side) ** 2, patches) if window else 0
    pairs = patches * (seen_in_full * alone + (depth - seen_in_full) * in_window)
    return int(flops + 4 * width * pairs)


def counted_flops(run: Callable[[], object]) -> int:
    """What a run on a CPU with sdpa really computes, counted by torch as it goes on, to check the above.

    Attention's pairs are counted as the mask leaves them, and experts' products, which torch's own counter doesn't do.
    """
    formulas: dict[Any, Any] = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    if hasattr(torch.ops.aten, "_grouped_mm"):
        formulas[torch.ops.aten._grouped_mm] = _experts_flops
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        run()
    return int(counter.get_total_flops())


def _attention_flops(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    **more: Any,
) -> int:
    batch, heads, rows, width = query.shape
    pairs = rows * (rows + 1) // 2 if causal else rows * key.shape[2]
    if attn_mask is not None:
        allowed = attn_mask if attn_mask.dtype is torch.bool else attn_mask > torch.finfo(attn_mask.dtype).min
        pairs = int(allowed.expand(batch, heads, rows, key.shape[2])[0, 0].sum())
    return 4 * batch * heads * width * pairs


def _experts_flops(rows: Sequence[int], weights: Sequence[int], *shapes: Any, **more: Any) -> int:
    return 2 * rows[-2] * rows[-1] * weights[-1]


_attention_flops._get_raw = True  # type: ignore[attr-defined]  # torch then hands over tensors, not shapes


def _pairs(tokens: int, window: int | None) -> int:
    """Pairs of tokens under a causal mask, each with itself too, of which each sees at most ``window``."""
    full = tokens if window is None else min(tokens, window)
    return full * (full + 1) // 2 + (tokens - full) * full
