"""The stock text tower's function on right-padded batches, without masks or caches: faster to train."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

PLAIN_LENGTH = 640  # up to here plain matrix products train faster than the fused attention

LOOKING_LAYERS = range(5)  # whose attention masses are given


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


def _norm(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(hidden, (hidden.shape[-1],), weight.to(hidden.dtype), 1e-6)


def text_states(
    text: nn.Module,
    hidden: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    segments: torch.Tensor,
    watch: tuple[int, int] | None = None,
    seen: list[torch.Tensor] | None = None,
    spans: tuple[torch.Tensor, torch.Tensor] | None = None,
    masses: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Last hidden states, (sequences, tokens, width), under causal attention.

    hidden: (sequences, tokens, width) embeddings; cos and sin: (sequences, tokens, head width), from `rotary_emb`.
    segments: (sequences, tokens); a token sees segment 0 and its own; if its own is positive, all negative ones,
    too.
    With `watch`, each layer's attention of these rows is put into `seen`: (sequences, heads, rows, tokens), float32.
    With `spans`, the questions' rows (sequences, rows) as indices and their tokens' pages (sequences, tokens, pages) as
    zeros and ones, the looking layers' attention mass of every row on every page is put into `masses`:
    (sequences, heads, rows, pages).
    """
    if torch.is_autocast_enabled("cpu"):
        hidden = hidden.to(torch.get_autocast_dtype("cpu"))
    count, length, width = hidden.shape
    cos, sin = cos[:, None].to(hidden.dtype), sin[:, None].to(hidden.dtype)
    looked_at, looking = segments[:, None, :], segments[:, :, None]
    seen_from = (looked_at == 0) | (looked_at == looking) | ((looking > 0) & (looked_at < 0))
    visible = (seen_from & torch.ones(length, length, dtype=torch.bool).tril())[
        :, None
    ]  # (sequences, 1, tokens, tokens)
    hiding = torch.zeros(visible.shape, dtype=hidden.dtype).masked_fill(~visible, float("-inf"))
    for number, layer in enumerate(text.layers):
        attention = layer.self_attn
        size = attention.head_dim
        normed = _norm(hidden, layer.input_layernorm.weight)
        query = _rotate(attention.q_proj(normed).view(count, length, -1, size).transpose(1, 2), cos, sin)
        key = _rotate(attention.k_proj(normed).view(count, length, -1, size).transpose(1, 2), cos, sin)
        value = attention.v_proj(normed).view(count, length, -1, size).transpose(1, 2)
        groups = query.shape[1] // key.shape[1]
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
        if length <= PLAIN_LENGTH:
            logits = (query * size**-0.5) @ key.transpose(2, 3)
            mixed = (logits + hiding).softmax(-1).to(value.dtype) @ value
        else:
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=hiding)
        if spans is not None and masses is not None and number in LOOKING_LAYERS:
            masses.append(_page_masses(query, key, hiding, *spans))
        if watch is not None and seen is not None:
            seen.append(_attention_rows(query, key, watch))
        hidden = hidden + attention.o_proj(mixed.transpose(1, 2).reshape(count, length, width))
        normed = _norm(hidden, layer.post_attention_layernorm.weight)
        mlp = layer.mlp
        hidden = hidden + mlp.down_proj(functional.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))
    return _norm(hidden, text.norm.weight)


def _attention_rows(query: torch.Tensor, key: torch.Tensor, watch: tuple[int, int]) -> torch.Tensor:
    start, end = watch
    later = torch.arange(key.shape[2])[None, :] > torch.arange(start, end)[:, None]  # (rows, tokens)
    with torch.autocast("cpu", enabled=False):  # logits and softmax in float32
        logits = query[:, :, start:end].float() @ key.float().transpose(2, 3) * query.shape[-1] ** -0.5
        return logits.masked_fill(later, float("-inf")).softmax(-1)


def _page_masses(
    query: torch.Tensor, key: torch.Tensor, hiding: torch.Tensor, rows: torch.Tensor, pages: torch.Tensor
) -> torch.Tensor:
    count, heads, length, size = query.shape
    picked = query.gather(2, rows[:, None, :, None].expand(count, heads, -1, size))
    logits = (picked @ key.transpose(2, 3)).float() * size**-0.5
    hidden_rows = hiding.gather(2, rows[:, None, :, None].expand(count, 1, -1, length))
    weights = (logits + hidden_rows).softmax(-1)  # (sequences, heads, rows, tokens)
    return weights @ pages[:, None].to(weights.dtype)
