"""CPU only: attention in two parts, joined by log-sum-exp. Keys that every row sees need no mask, the rest do.

A pass behind kept keys sees all of these; only its own tokens hide some of each other. Under one mask, torch's fused
kernel would read a number for each row and kept key, and copy the keys for each query head that shares them. Two parts
need neither. Each part's log-sum-exp gives its share of the whole (the online softmax of
Milakov and Gimelshein 2018, arXiv 1805.02867, as flash attention joins its blocks).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmrh_retriever.errors import AttentionCaptureError

_KERNEL: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
KEYS_AT_ONCE = 16 * 1024
"""Keys that the kernel is given at a time: in half precision it makes a copy of them and their values."""
_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def can_split(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether torch's fused CPU kernel, which tells the log-sum-exp, takes these."""
    return (
        _KERNEL is not None
        and {query.device.type, key.device.type, value.device.type} == {"cpu"}
        and query.dtype in _TYPES
        and query.dtype == key.dtype == value.dtype  # autocast leaves them apart
        and query.shape[3] == value.shape[3]
        and not query.requires_grad
    )


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, scaling: float, mask: Tensor | None = None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp: ``(batch, heads, rows, width)``, and ``(batch, heads, rows)`` float32.

    ``query`` is ``(batch, heads, rows, width)``, ``key`` and ``value`` are ``(batch, key heads, keys, width)``;
    ``mask`` is ``(rows, keys)``, added to the logits. With ``causal``, row ``i`` sees keys up to ``i``.
    """
    batch, heads, rows, width = query.shape
    if not key.shape[2]:  # the kernel divides by their number
        raise AttentionCaptureError("Attention over no keys; expected at least one. Were the kept keys not taken?")
    shared = heads // key.shape[1]
    if mask is None and not causal:  # query heads that share a key head are further rows of it
        stacked = query if shared == 1 else query.reshape(batch, key.shape[1], shared * rows, width)
        output, total = _KERNEL(stacked, key, value, scale=scaling)
        return output.reshape(query.shape), total.reshape(batch, heads, rows)
    if shared > 1:
        key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    added = None if mask is None else mask[None, None]
    output, total = _KERNEL(query, key, value, 0.0, causal, attn_mask=added, scale=scaling)
    return output, total


def attend_behind(
    query: Tensor, key: Tensor, value: Tensor, seen: int, *, scaling: float, mask: Tensor | None
) -> Tensor:
    """Attention of rows that all see the first ``seen`` keys (at least 1) and, under a mask, the others.

    ``query`` is ``(1, heads, rows, width)``, ``key`` and ``value`` are ``(1, key heads, seen + rows, width)``; ``mask``
    is ``(rows, rows)`` for the last keys, ``None`` for a causal one. Gives the query's shape and type.
    """
    joined, total = attend(query, key[:, :, seen:], value[:, :, seen:], scaling=scaling, mask=mask, causal=mask is None)
    if seen > KEYS_AT_ONCE:
        joined = joined.float()  # rounded once, not at every join
    for start in range(0, seen, KEYS_AT_ONCE):
        keys = slice(start, min(start + KEYS_AT_ONCE, seen))
        part, own = attend(query, key[:, :, keys], value[:, :, keys], scaling=scaling)
        share = torch.sigmoid(own - total)[..., None]
        joined = torch.lerp(joined, part.to(joined.dtype), share.to(joined.dtype))
        total = torch.logaddexp(total, own)
    return joined.to(query.dtype)
