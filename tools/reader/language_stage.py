"""Stage 2: the text tower learns to predict snippets of simulated pages; heads that look up the evidence emerge."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import Qwen2_5_VLForConditionalGeneration

from tools.reader.dialogue import Example
from tools.reader.fast_text import text_states
from tools.reader.model import BLANK
from tools.reader.shown_pages import ExampleMaker, Shape, View

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Right-padded prompts."""

    ids: torch.Tensor  # (prompts, tokens); visual cells and padding are 0
    visual: torch.Tensor  # (prompts, tokens) bool
    positions: torch.Tensor  # (3, prompts, tokens)
    cells: torch.Tensor  # (labels, 2): running number of the visual token in the batch, piece
    n_cells: int
    rows: torch.Tensor  # (targets, 2): prompt, token whose state predicts
    targets: torch.Tensor  # (targets,)


def collate_prompts(examples: Sequence[Example], multiple: int = 32) -> PromptBatch:
    """Pad on the right; under causal attention padding is never looked at."""
    longest = max(len(example.ids) for example in examples)
    length = -(-longest // multiple) * multiple
    ids = np.zeros((len(examples), length), np.int64)
    visual = np.zeros((len(examples), length), bool)
    positions = np.zeros((3, len(examples), length), np.int64)
    cells, rows, targets, start = [], [], [], 0
    for number, example in enumerate(examples):
        size = len(example.ids)
        ids[number, :size] = np.maximum(example.ids, 0)
        visual[number, :size] = example.ids < 0
        positions[:, number, :size] = example.positions
        cells.append(example.cells + [start, 0])
        start += example.n_cells
        begin, end = example.question
        rows.extend((number, token - 1) for token in range(begin, end))
        targets.extend(example.ids[begin:end])
    return PromptBatch(
        torch.from_numpy(ids),
        torch.from_numpy(visual),
        torch.from_numpy(positions),
        torch.from_numpy(np.concatenate(cells)),
        start,
        torch.tensor(rows),
        torch.tensor(np.array(targets)),
    )


@dataclass(frozen=True, slots=True)
class Simulation:
    """How the tower's output for a cell is simulated from what the cell says."""

    dropped: float = 0.1
    confused: float = 0.05
    noise: float = 0.4  # at most; of the embedding's own spread
    scale: tuple[float, float] = (0.4, 1.0)

    def __call__(self, batch: PromptBatch, _views: Sequence[View], embedding: torch.Tensor) -> torch.Tensor:
        """Visual tokens, (n_cells, width): scaled sums of the cells' pieces, some lost, some misread."""
        cell, piece = batch.cells[:, 0], batch.cells[:, 1]
        fate = torch.rand(len(piece))
        wrong = torch.randint(300, len(embedding), piece.shape)
        piece = torch.where(fate < self.confused, wrong, piece)
        keep = fate < 1 - self.dropped
        weight = torch.empty(len(piece)).uniform_(*self.scale) * keep
        empty = torch.ones(batch.n_cells).index_fill_(0, cell, 0.0)
        tokens = empty[:, None] * embedding[BLANK] * 0.8
        tokens = tokens.index_add(0, cell, embedding[piece] * weight[:, None])
        spread = float(embedding.detach().std()) * self.noise * float(torch.rand(()))
        return tokens + torch.randn_like(tokens) * spread


def prompt_states(
    model: Qwen2_5_VLForConditionalGeneration,
    batch: PromptBatch,
    visual_tokens: torch.Tensor,
    run: Callable[..., torch.Tensor] = text_states,
    **watching: object,
) -> torch.Tensor:
    """Last hidden states of the prompts with these visual tokens in their places."""
    text = model.model.language_model
    embedded = text.embed_tokens(batch.ids)
    embedded = embedded.masked_scatter(batch.visual[:, :, None], visual_tokens.to(embedded.dtype))
    cos, sin = text.rotary_emb(embedded, batch.positions)
    with torch.autocast("cpu", torch.bfloat16):
        return run(text, embedded, cos, sin, **watching)


def snippet_loss(
    model: Qwen2_5_VLForConditionalGeneration, batch: PromptBatch, states: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy over the snippets' tokens."""
    picked = states[batch.rows[:, 0], batch.rows[:, 1]]
    with torch.autocast("cpu", torch.bfloat16):
        logits = picked @ model.model.language_model.embed_tokens.weight.T
    return functional.cross_entropy(logits.float(), batch.targets)


@dataclass(frozen=True, slots=True)
class LanguageSettings:
    """How stage 2 runs."""

    seconds: float
    tokens: int = 3072  # a batch
    peak_rate: float = 1.0e-3
    decay_share: float = 0.2
    warmup_steps: int = 100
    checkpoint_seconds: float = 150.0
    log_steps: int = 50


VisualSource = Callable[[PromptBatch, Sequence[View], torch.Tensor], torch.Tensor]
"""Visual tokens of a batch, given its prompts, the views that they show and the sub-word embedding."""


def shape_at(progress: float, rng: random.Random) -> Shape:
    """Pages grow in number and size as training goes on."""
    if progress < 0.15:
        return Shape(1, 8, 4)
    if progress < 0.5:
        return rng.choice((Shape(1, 8, 4), Shape(2, 8, 4), Shape(4, 8, 4), Shape(2, 8, 8), Shape(1, 12, 8)))
    return rng.choice(
        (Shape(1, 16, 16), Shape(2, 12, 12), Shape(4, 8, 8), Shape(8, 8, 4), Shape(6, 12, 6), Shape(3, 16, 12))
    )


def train_language(
    model: Qwen2_5_VLForConditionalGeneration,
    maker: ExampleMaker,
    settings: LanguageSettings,
    folder: Path,
    *,
    visual: VisualSource | None = None,
    shapes: Callable[[float, random.Random], Shape] = shape_at,
    train_embedding: bool = True,
    name: str = "language",
    evaluate: Callable[[], str] | None = None,
    compiled: bool = False,
) -> None:
    """Train the text tower for the given seconds, from the checkpoint `name`.pt in `folder` where there is one."""
    visual = visual or Simulation()
    text = model.model.language_model
    text.embed_tokens.weight.requires_grad_(train_embedding)
    parameters = [parameter for parameter in text.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=settings.peak_rate, betas=(0.9, 0.98), weight_decay=0.01)
    state = {"step": 0, "seconds": 0.0}
    checkpoint = folder / f"{name}.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        text.load_state_dict(saved["text"])
        optimiser.load_state_dict(saved["optimiser"])
        state = saved["state"]
        logger.info("%s: resumed at %s", name, state)
    run = torch.compile(text_states, dynamic=True) if compiled else text_states
    before, started = state["seconds"], time.monotonic()
    last_save, losses = started, {}
    while state["seconds"] < settings.seconds:
        progress = state["seconds"] / settings.seconds
        left = (1 - progress) / settings.decay_share + 0.02
        rate = settings.peak_rate * min(1.0, (state["step"] + 1) / settings.warmup_steps, left)
        for group in optimiser.param_groups:
            group["lr"] = rate
        shape = shapes(progress, maker.pool.rng)
        length = shape.pages * (shape.columns * shape.rows + 10) + 45
        made = [maker.make(shape) for _ in range(max(settings.tokens // length, 1))]
        batch = collate_prompts([example for example, _ in made])
        tokens = visual(batch, [view for _, views in made for view in views], text.embed_tokens.weight)
        loss = snippet_loss(model, batch, prompt_states(model, batch, tokens, run))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        losses.setdefault(shape.pages, []).append(float(loss.detach()))
        state["step"] += 1
        state["seconds"] = before + time.monotonic() - started
        if state["step"] % settings.log_steps == 0:
            by_pages = " ".join(f"{pages}p {sum(x) / len(x):.2f}" for pages, x in sorted(losses.items()))
            logger.info("%s step %d seconds %.0f loss %s rate %.2g", name, state["step"], state["seconds"], by_pages, rate)
            losses.clear()
        if evaluate is not None and state["step"] % (settings.log_steps * 6) == 0:
            logger.info("%s step %d: %s", name, state["step"], evaluate())
        if time.monotonic() - last_save > settings.checkpoint_seconds or state["seconds"] >= settings.seconds:
            last_save = time.monotonic()
            torch.save({"text": text.state_dict(), "optimiser": optimiser.state_dict(), "state": state}, checkpoint)
