"""How the text tower's heads start: looking for what a question's pieces say, and for the piece before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

MATCHING_HEADS = (0, 1)
PREVIOUS_HEADS = (2, 3)  # in the first layer
SHARPNESS = (1.0, 1.5)  # of the matching heads, times that of the labels
TURNS = 10  # fastest rotary frequencies; they differ from one position to the next
POSITION_STRENGTH = 8.0
WRITTEN = 0.5  # how much of the piece before is added to a piece
OTHERS = 0.3  # standard deviation of other weights, of fan_in ** -0.5


@dataclass(frozen=True, slots=True)
class Directions:
    """What the towers' vectors of length one have in common, and what sets them apart."""

    content: torch.Tensor  # (rank, width): orthonormal rows that keep visual tokens apart
    turn: torch.Tensor  # (width, width): orthogonal; visual tokens stand turned by it
    pieces: torch.Tensor  # (2 * head width, width): orthonormal rows that keep pieces apart
    begins: torch.Tensor  # (width,): with `offset`, above 0 where a piece begins a word, below elsewhere
    offset: float


def directions(
    tokenizer: PreTrainedTokenizerFast, embedding: torch.Tensor, visual: torch.Tensor, rank: int, head_width: int
) -> Directions:
    """By singular vectors and least squares. embedding: (pieces, width); visual: (cells, width), not yet turned."""
    known, seen = functional.normalize(embedding, dim=-1), functional.normalize(visual, dim=-1)
    content = torch.linalg.svd(seen - seen.mean(0), full_matrices=False).Vh[:rank]
    pieces = torch.linalg.svd(known - known.mean(0), full_matrices=False).Vh[: 2 * head_width]
    start = known[tokenizer.convert_tokens_to_ids("<|vision_start|>")]  # what visual tokens have before them
    pieces = pieces - torch.outer(pieces @ start, start)
    turn = torch.linalg.qr(torch.randn(len(content.T), len(content.T)))[0]
    begins = [str(tokenizer.convert_ids_to_tokens(number)).startswith("Ġ") for number in range(len(embedding))]
    wanted = torch.cat([torch.tensor(begins).float() * 2 - 1, -torch.ones(len(seen))])
    table = torch.cat([torch.cat([known, seen @ turn.T]), torch.ones(len(wanted), 1)], dim=1)
    solved = torch.linalg.lstsq(table, wanted[:, None]).solution[:, 0]
    return Directions(content, turn, pieces, solved[:-1], float(solved[-1]))


@torch.no_grad()
def start_heads(model: Qwen2_5_VLForConditionalGeneration, found: Directions, sharpness: float) -> None:
    """Set the text tower's attention weights. Training goes on from there with all of them.

    Visual tokens are turned away from the word pieces that they say, or every piece of a question would look at itself
    first. In every layer the matching heads turn them back. Beside that their queries and keys share one projection, so
    a question's piece looks for visual tokens that say it. In the first layer the previous heads add to a piece inside
    a word what the piece before says, so in the next layer a word's pieces look for both.
    """
    text = model.model.language_model
    last = model.model.visual.merger.mlp[2]
    last.weight.copy_(found.turn @ last.weight)
    last.bias.copy_(found.turn @ last.bias)
    width = text.embed_tokens.embedding_dim
    for number, layer in enumerate(text.layers):
        attention = layer.self_attn
        size = attention.head_dim
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
            linear.weight.normal_(0.0, OTHERS * linear.in_features**-0.5)
            if linear.bias is not None:
                linear.bias.zero_()
        attention.o_proj.weight.mul_(0.1)
        turning = size // 2
        steady = [row for row in range(size) if row % turning >= turning - len(found.content) // 2]
        for head, factor in zip(MATCHING_HEADS, SHARPNESS, strict=True):
            gain = (sharpness * factor * size**0.5 / width) ** 0.5
            for linear, rows in ((attention.q_proj, found.content), (attention.k_proj, found.content @ found.turn.T)):
                block = linear.weight[head * size : (head + 1) * size]
                block.zero_()
                block[steady] = gain * rows
        if number:
            continue
        angles = text.rotary_emb.inv_freq[:TURNS].float()
        for part, head in enumerate(PREVIOUS_HEADS):
            rows = slice(head * size, (head + 1) * size)
            for linear in (attention.q_proj, attention.k_proj):
                linear.weight[rows] = 0.0
            here, before = torch.zeros(size), torch.zeros(size)
            here[:TURNS] = POSITION_STRENGTH  # turned as its own position is; also what every key says
            before[:TURNS] = POSITION_STRENGTH * torch.cos(angles)
            before[turning : turning + TURNS] = -POSITION_STRENGTH * torch.sin(angles)
            query, asks = (here + before) / 2, (here - before) / 2
            attention.k_proj.bias[rows] = here
            attention.q_proj.bias[rows] = query + asks * found.offset
            attention.q_proj.weight[rows] = torch.outer(asks, found.begins) * width**-0.5
            basis = found.pieces[part * size : (part + 1) * size]
            attention.v_proj.weight[rows] = basis * width**-0.5
            attention.o_proj.weight[:, rows] = WRITTEN * basis.T
    for layer in text.layers:
        layer.mlp.down_proj.weight.mul_(0.3)


def scale_embedding(text: nn.Module) -> None:
    """Give every piece the length 1: the labels were learnt from directions alone."""
    with torch.no_grad():
        text.embed_tokens.weight.copy_(functional.normalize(text.embed_tokens.weight, dim=-1))


def scale_visual(tower: nn.Module, sample: torch.Tensor) -> float:
    """Make visual tokens as long as pieces, on average over a sample of them, (cells, width); returns the factor."""
    factor = 1.0 / float(sample.norm(dim=-1).mean())
    with torch.no_grad():
        tower.merger.mlp[2].weight.mul_(factor)
        tower.merger.mlp[2].bias.mul_(factor)
    return factor
