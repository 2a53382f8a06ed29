"""Attention of torch's own under a mask of ours, where key heads are shared by query heads."""

from __future__ import annotations

from torch import Tensor, nn


def masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """The output under an additive ``mask``, ``(1, tokens, heads, width)``, without copying the keys for each head.

    ``query`` is ``(1, heads, tokens, width)``, ``key`` and ``value`` are ``(1, key heads, keys, width)``.

    On a CPU torch shares key heads itself. Elsewhere the query heads that share a key head are stacked as further rows,
    since the fused kernels take no mask with shared keys.
    """
    _, heads, tokens, width = query.shape
    shared = heads // key.shape[1]
    if query.device.type == "cpu" or shared == 1:
        output = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling, enable_gqa=shared > 1
        )
    else:
        rows = query.reshape(1, key.shape[1], shared * tokens, width)
        output = nn.functional.scaled_dot_product_attention(
            rows, key, value, attn_mask=mask.repeat(1, 1, shared, 1), scale=scaling
        ).view(1, heads, tokens, value.shape[3])
    return output.transpose(1, 2).contiguous()
