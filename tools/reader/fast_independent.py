"""The text tower's function where pages stand alone: side by side in a batch, then questions that see all of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import Qwen2_5_VLForConditionalGeneration

from tools.reader.dialogue import Example


@dataclass(frozen=True, slots=True)
class TokenIndices:
    """Which tokens of an example make up the batches of pages and of questions."""

    pages: torch.Tensor  # (pages, tokens): indices into the example; padded with 0 on the right
    questions: torch.Tensor  # (questions, tokens), likewise
    seen: torch.Tensor  # (keys,): what questions see of the flattened batch of pages: the prefix, then the pages
    page_of: torch.Tensor  # (keys, pages): 1 where a key counts for a page
    asking: torch.Tensor  # (questions, tokens): 1 at a question's own words
    gold: torch.Tensor  # (questions,)

    @classmethod
    def of(cls, example: Example) -> TokenIndices:
        """From the example's segments."""
        prefix = np.flatnonzero(example.segments == 0)
        pages = [np.flatnonzero(example.segments == -number) for number in range(1, len(example.pages) + 1)]
        rows = [np.concatenate([prefix, page]) for page in pages]
        width = max(map(len, rows))
        table = np.zeros((len(rows), width), np.int64)
        seen, page_of = [np.arange(len(prefix))], [np.zeros((len(prefix), len(pages)), np.float32)]
        for number, (row, page, (begin, end)) in enumerate(zip(rows, pages, example.pages, strict=True)):
            table[number, : len(row)] = row
            seen.append(number * width + np.arange(len(prefix), len(row)))
            counts = np.zeros((len(page), len(pages)), np.float32)
            counts[(page >= begin) & (page < end), number] = 1.0
            page_of.append(counts)
        asked = [np.flatnonzero(example.segments == number) for number in range(1, len(example.questions) + 1)]
        longest = max(map(len, asked))
        questions = np.zeros((len(asked), longest), np.int64)
        asking = np.zeros((len(asked), longest), np.float32)
        for number, (tokens, (begin, end)) in enumerate(zip(asked, example.questions, strict=True)):
            questions[number, : len(tokens)] = tokens
            asking[number, : len(tokens)] = (tokens >= begin) & (tokens < end)
        return cls(
            torch.from_numpy(table),
            torch.from_numpy(questions),
            torch.from_numpy(np.concatenate(seen)),
            torch.from_numpy(np.concatenate(page_of)),
            torch.from_numpy(asking),
            torch.tensor(example.golds),
        )


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


def _norm(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(hidden, (hidden.shape[-1],), weight.to(hidden.dtype), 1e-6)


def _heads(states: torch.Tensor, size: int) -> torch.Tensor:
    return states.unflatten(-1, (-1, size)).transpose(1, 2)  # (batch, heads, tokens, size)


def _block(layer: nn.Module, hidden: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
    hidden = hidden + layer.self_attn.o_proj(mixed.transpose(1, 2).flatten(2))
    normed = _norm(hidden, layer.post_attention_layernorm.weight)
    mlp = layer.mlp
    return hidden + mlp.down_proj(functional.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))


def independent_states(
    text: nn.Module, embedded: torch.Tensor, positions: torch.Tensor, indices: TokenIndices
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Last states of the questions, (questions, tokens, width), and each layer's (questions, heads, pages) of mass.

    embedded: (tokens, width) of the whole example; positions: (3, tokens). To be called under autocast.
    """
    dtype = torch.get_autocast_dtype("cpu")
    pages, questions = embedded[indices.pages].to(dtype), embedded[indices.questions].to(dtype)
    turn = [part[:, None].to(dtype) for part in text.rotary_emb(embedded, positions[:, indices.pages])]
    turn_asked = [part[:, None].to(dtype) for part in text.rotary_emb(embedded, positions[:, indices.questions])]
    length = questions.shape[1]
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    words = indices.asking / indices.asking.sum(1, keepdim=True)
    masses = []
    for layer in text.layers:
        attention = layer.self_attn
        size, groups = attention.head_dim, attention.num_key_value_groups
        normed, asked = (_norm(hidden, layer.input_layernorm.weight) for hidden in (pages, questions))
        query = _rotate(_heads(attention.q_proj(normed), size), *turn)
        key = _rotate(_heads(attention.k_proj(normed), size), *turn)
        value = _heads(attention.v_proj(normed), size)
        mixed = functional.scaled_dot_product_attention(
            query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), is_causal=True
        )
        seen_keys, seen_values = (
            states.transpose(0, 1).flatten(1, 2)[:, indices.seen].repeat_interleave(groups, 0)
            for states in (key, value)
        )  # (heads, keys, size)
        query = (_rotate(_heads(attention.q_proj(asked), size), *turn_asked) * size**-0.5).transpose(0, 1)
        own_key, own_value = (
            states.repeat_interleave(groups, 1).transpose(0, 1)
            for states in (
                _rotate(_heads(attention.k_proj(asked), size), *turn_asked),
                _heads(attention.v_proj(asked), size),
            )
        )  # (heads, questions, tokens, size); all questions are rows of one product with the keys that they share
        on_seen = (query.flatten(1, 2) @ seen_keys.transpose(1, 2)).float().unflatten(1, query.shape[1:3])
        own = (query @ own_key.transpose(2, 3)).float().masked_fill(later, float("-inf"))
        weights = torch.cat([on_seen, own], dim=-1).softmax(-1)
        on_pages, on_own = weights.split([len(indices.seen), length], dim=-1)
        with torch.autocast("cpu", enabled=False):
            masses.append(torch.einsum("hqlk,ql->qhk", on_pages, words) @ indices.page_of)
        found = (on_pages.to(dtype).flatten(1, 2) @ seen_values).unflatten(1, query.shape[1:3])
        found = (found + on_own.to(dtype) @ own_value).transpose(0, 1)
        pages = _block(layer, pages, mixed)
        questions = _block(layer, questions, found)
    return _norm(questions, text.norm.weight), masses


def independent_losses(
    model: Qwen2_5_VLForConditionalGeneration, example: Example, visual: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss of the questions' words, and each layer's helper: cross-entropy of the gold page's share of the mass."""
    text = model.model.language_model
    indices = TokenIndices.of(example)
    ids = torch.from_numpy(np.maximum(example.ids, 0))
    embedded = text.embed_tokens(ids)
    embedded = embedded.masked_scatter(torch.from_numpy(example.ids < 0)[:, None], visual.to(embedded.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        states, masses = independent_states(text, embedded, torch.from_numpy(example.positions), indices)
        counted = indices.asking[:, 1:] > 0
        logits = states[:, :-1][counted] @ text.embed_tokens.weight.T
    word_loss = functional.cross_entropy(logits.float(), ids[indices.questions[:, 1:]][counted])
    sums = [mass.sum(1).clamp(min=1e-7) for mass in masses]
    return word_loss, [functional.nll_loss((sum_ / sum_.sum(-1, keepdim=True)).log(), indices.gold) for sum_ in sums]
