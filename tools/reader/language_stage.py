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

PADDING_SEGMENT = 10_000


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Right-padded prompts."""

    ids: torch.Tensor  # (prompts, tokens); visual cells and padding are 0
    visual: torch.Tensor  # (prompts, tokens) bool
    positions: torch.Tensor  # (3, prompts, tokens)
    segments: torch.Tensor  # (prompts, tokens)
    cells: torch.Tensor  # (labels, 2): running number of the visual token in the batch, piece
    n_cells: int
    rows: torch.Tensor  # (targets, 2): prompt, token whose state predicts
    targets: torch.Tensor  # (targets,)
    asking: torch.Tensor  # (prompts, most question tokens): where the questions' tokens are; the last one repeated
    pages: torch.Tensor  # (prompts, tokens, most pages): 1 where a token is of a page
    gold: torch.Tensor  # (prompts, most question tokens): the page that each is about; -100 for repeated ones


def collate_prompts(examples: Sequence[Example], multiple: int = 32) -> PromptBatch:
    """Pad on the right; under causal attention padding is never looked at."""
    longest = max(len(example.ids) for example in examples)
    length = -(-longest // multiple) * multiple
    ids = np.zeros((len(examples), length), np.int64)
    visual = np.zeros((len(examples), length), bool)
    positions = np.zeros((3, len(examples), length), np.int64)
    segments = np.full((len(examples), length), PADDING_SEGMENT, np.int64)
    cells, rows, targets, start = [], [], [], 0
    for number, example in enumerate(examples):
        size = len(example.ids)
        ids[number, :size] = np.maximum(example.ids, 0)
        visual[number, :size] = example.ids < 0
        positions[:, number, :size] = example.positions
        cells.append(example.cells + np.array([start, 0]))
        start += example.n_cells
        segments[number, :size] = example.segments
        for begin, end in example.questions:
            rows.extend((number, token - 1) for token in range(begin, end))
            targets.extend(example.ids[begin:end])
    return PromptBatch(
        torch.from_numpy(ids),
        torch.from_numpy(visual),
        torch.from_numpy(positions),
        torch.from_numpy(segments),
        torch.from_numpy(np.concatenate(cells)),
        start,
        torch.tensor(rows),
        torch.tensor(np.array(targets)),
        *_spans(examples, length),
    )


def _spans(examples: Sequence[Example], length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    asking: list[list[int]] = []
    golds: list[list[int]] = []
    for example in examples:
        asking.append([token for begin, end in example.questions for token in range(begin, end)])
        golds.append(
            [
                gold
                for (begin, end), gold in zip(example.questions, example.golds, strict=True)
                for _ in range(begin, end)
            ]
        )
    most = max(map(len, asking))
    filled = torch.tensor([row + [row[-1]] * (most - len(row)) for row in asking])
    gold = torch.tensor([row + [-100] * (most - len(row)) for row in golds])
    pages = torch.zeros(len(examples), length, max(len(example.pages) for example in examples))
    for number, example in enumerate(examples):
        for page, (begin, end) in enumerate(example.pages):
            pages[number, begin:end, page] = 1.0
    return filled, pages, gold


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
        return run(text, embedded, cos, sin, batch.segments, **watching)


def snippet_loss(model: Qwen2_5_VLForConditionalGeneration, batch: PromptBatch, states: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over the snippets' tokens."""
    picked = states[batch.rows[:, 0], batch.rows[:, 1]]
    with torch.autocast("cpu", torch.bfloat16):
        logits = picked @ model.model.language_model.embed_tokens.weight.T
    return functional.cross_entropy(logits.float(), batch.targets)


def looking_loss(masses: Sequence[torch.Tensor], batch: PromptBatch) -> torch.Tensor:
    """A helper: of a layer's attention from a question to the pages, the gold page's share, as cross-entropy.

    masses: of each looking layer, (prompts, heads, question tokens, pages).
    """
    # A question's tokens are averaged before the share is taken, as they are when pages are scored.
    question = batch.segments.gather(1, batch.asking)  # (prompts, question tokens)
    counted = batch.gold >= 0
    index = torch.where(counted, question, 0)
    count, most = index.shape
    n_questions = int(index.max()) + 1
    golds = torch.full((count, n_questions), -100).scatter(1, index, torch.where(counted, batch.gold, -100))
    golds[:, 0] = -100  # where the repeated tokens went
    losses = []
    for mass in masses:
        rows = mass.mean(1)  # (prompts, question tokens, pages)
        sums = torch.zeros(count, n_questions, rows.shape[-1], dtype=rows.dtype)
        sums = sums.scatter_add(1, index[:, :, None].expand(count, most, rows.shape[-1]), rows).clamp(min=1e-6)
        share = (sums / sums.sum(-1, keepdim=True)).log()
        losses.append(functional.nll_loss(share.flatten(0, 1), golds.flatten()))
    return torch.stack(losses).mean()


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
    looking_weight: float = 0.0  # of the helper loss on attention


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
    parameters = list(text.parameters())  # a frozen embedding stays in, so that checkpoints fit each other
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
        made = [maker.make(shape) for _ in range(max(settings.tokens // shape.tokens, 1))]
        batch = collate_prompts([example for example, _ in made])
        tokens = visual(batch, [view for _, views in made for view in views], text.embed_tokens.weight)
        masses: list[torch.Tensor] = []
        helped = settings.looking_weight > 0 and shape.pages > 1
        watching = {"spans": (batch.asking, batch.pages), "masses": masses} if helped else {}
        loss = told = snippet_loss(model, batch, prompt_states(model, batch, tokens, run, **watching))
        if helped:
            looked = looking_loss(masses, batch)
            loss = told + settings.looking_weight * looked
            losses.setdefault(-shape.pages, []).append(float(looked.detach()))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        losses.setdefault(shape.pages, []).append(float(told.detach()))
        state["step"] += 1
        state["seconds"] = before + time.monotonic() - started
        if state["step"] % settings.log_steps == 0:
            by_pages = " ".join(f"{pages}p {sum(x) / len(x):.2f}" for pages, x in sorted(losses.items()))
            logger.info(
                "%s step %d seconds %.0f loss %s rate %.2g", name, state["step"], state["seconds"], by_pages, rate
            )
            losses.clear()
        if evaluate is not None and state["step"] % (settings.log_steps * 6) == 0:
            logger.info("%s step %d: %s", name, state["step"], evaluate())
        if time.monotonic() - last_save > settings.checkpoint_seconds or state["seconds"] >= settings.seconds:
            last_save = time.monotonic()
            torch.save({"text": text.state_dict(), "optimiser": optimiser.state_dict(), "state": state}, checkpoint)
