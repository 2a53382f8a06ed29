"""The text tower's function where pages stand alone: side by side in a batch, then questions that see all of them."""

from __future__ import annotations

from collections.abc import Sequence
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


def pages_alone(
    layers: Sequence[nn.Module], pages: torch.Tensor, turn: Sequence[torch.Tensor]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each layer's keys and values, (pages, heads, tokens, size), of pages that each see themselves alone.

    pages: (pages, tokens, width), embedded; turn: rotary cosines and sines, (pages, 1, tokens, size).
    """
    found = []
    for number, layer in enumerate(layers, start=1):
        attention = layer.self_attn
        size, groups = attention.head_dim, attention.num_key_value_groups
        normed = _norm(pages, layer.input_layernorm.weight)
        key = _rotate(_heads(attention.k_proj(normed), size), *turn)
        value = _heads(attention.v_proj(normed), size)
        found.append((key, value))
        if number < len(layers):  # nobody sees what the last one would give
            query = _rotate(_heads(attention.q_proj(normed), size), *turn)
            mixed = functional.scaled_dot_product_attention(
                query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), is_causal=True
            )
            pages = _block(layer, pages, mixed)
    return found


@dataclass(frozen=True, slots=True)
class Look:
    """Where questions look in one layer."""

    on_pages: torch.Tensor  # (heads, questions, tokens, keys) float32
    on_own: torch.Tensor  # (heads, questions, tokens, tokens) float32
    own_values: torch.Tensor  # (heads, questions, tokens, size)

    @classmethod
    def of(cls, layer: nn.Module, questions: torch.Tensor, turn: Sequence[torch.Tensor], keys: torch.Tensor) -> Look:
        """Of questions, (questions, tokens, width), at the keys that they all see, (key heads, keys, size)."""
        attention = layer.self_attn
        size, groups = attention.head_dim, attention.num_key_value_groups
        asked = _norm(questions, layer.input_layernorm.weight)
        length = questions.shape[1]
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        query = (_rotate(_heads(attention.q_proj(asked), size), *turn) * size**-0.5).transpose(0, 1)
        own_key, own_value = (
            states.repeat_interleave(groups, 1).transpose(0, 1)
            for states in (_rotate(_heads(attention.k_proj(asked), size), *turn), _heads(attention.v_proj(asked), size))
        )  # (heads, questions, tokens, size); all questions are rows of one product with the keys that they share
        seen = keys.repeat_interleave(groups, 0).transpose(1, 2)
        on_seen = (query.flatten(1, 2) @ seen).float().unflatten(1, query.shape[1:3])
        own = (query @ own_key.transpose(2, 3)).float().masked_fill(later, float("-inf"))
        weights = torch.cat([on_seen, own], dim=-1).softmax(-1)
        return cls(*weights.split([keys.shape[1], length], dim=-1), own_value)

    def mass(self, words: torch.Tensor, page_of: torch.Tensor) -> torch.Tensor:
        """What questions pay each page, (questions, heads, pages), their tokens counting as `words` say."""
        with torch.autocast("cpu", enabled=False):
            return torch.einsum("hqlk,ql->qhk", self.on_pages, words) @ page_of

    def move(self, layer: nn.Module, questions: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """What becomes of the questions in this layer; values: (key heads, keys, size)."""
        seen = values.repeat_interleave(layer.self_attn.num_key_value_groups, 0)
        on_pages, on_own = self.on_pages.to(seen.dtype), self.on_own.to(seen.dtype)
        found = (on_pages.flatten(1, 2) @ seen).unflatten(1, on_pages.shape[1:3])
        return _block(layer, questions, (found + on_own @ self.own_values).transpose(0, 1))


def turns(text: nn.Module, embedded: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """Rotary cosines and sines, (rows, 1, tokens, size), of positions, (3, rows, tokens)."""
    return [part[:, None].to(dtype) for part in text.rotary_emb(embedded, positions)]


def independent_states(
    text: nn.Module, embedded: torch.Tensor, positions: torch.Tensor, indices: TokenIndices
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Last states of the questions, (questions, tokens, width), and each layer's (questions, heads, pages) of mass.

    embedded: (tokens, width) of the whole example; positions: (3, tokens). To be called under autocast.
    """
    dtype = torch.get_autocast_dtype("cpu")
    pages, questions = embedded[indices.pages].to(dtype), embedded[indices.questions].to(dtype)
    kept = pages_alone(text.layers, pages, turns(text, embedded, positions[:, indices.pages], dtype))
    turn = turns(text, embedded, positions[:, indices.questions], dtype)
    words = indices.asking / indices.asking.sum(1, keepdim=True)
    masses = []
    for layer, states in zip(text.layers, kept, strict=True):
        keys, values = (part.transpose(0, 1).flatten(1, 2)[:, indices.seen] for part in states)
        look = Look.of(layer, questions, turn, keys)
        masses.append(look.mass(words, indices.page_of))
        questions = look.move(layer, questions, values)
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
