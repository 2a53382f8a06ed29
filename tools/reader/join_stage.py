"""Stage 3: the text tower goes on with what the real vision tower makes of pages rendered on the fly."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from tools.reader.fast_independent import independent_losses
from tools.reader.fast_text import LOOKING_LAYERS
from tools.reader.fast_tower import window_positions, window_tokens
from tools.reader.labels import CELL, WINDOW_CELLS, crop, patches
from tools.reader.language_stage import PromptBatch, Simulation, collate_prompts
from tools.reader.shown_pages import ExampleMaker, Shape, View
from tools.reader.vision_stage import spoil

logger = logging.getLogger(__name__)


def view_windows(pixels: np.ndarray) -> np.ndarray:
    """A view's pixels as whole windows, row by row: (windows, patches, pixels)."""
    side = WINDOW_CELLS * CELL
    height, width, _ = pixels.shape
    tiles = pixels.reshape(height // side, side, width // side, side, 3).transpose(0, 2, 1, 3, 4)
    return np.stack([patches(tile) for tile in tiles.reshape(-1, side, side, 3)])


def in_reading_order(tokens: torch.Tensor, columns: int, rows: int) -> torch.Tensor:
    """Tokens of a view's windows, (windows, cells, width), as the view's cells row by row."""
    side = WINDOW_CELLS
    grid = tokens.reshape(rows // side, columns // side, side, side, -1)
    return grid.permute(0, 2, 1, 3, 4).reshape(rows * columns, -1)


@dataclass
class RenderedTokens:
    """Visual tokens from a tower that is not trained here; a part of the batches stays simulated."""

    tower: nn.Module
    rng: random.Random
    simulated_share: float = 0.15
    spoilt_share: float = 0.2
    checkpoint: Path | None = None  # where stage 1 leaves newer towers while it runs beside this stage
    simulation: Simulation = field(default_factory=Simulation)

    def __post_init__(self) -> None:
        self._rotary = window_positions(self.tower)
        self._loaded = 0.0

    def refresh(self) -> None:
        """Take over a newer tower, if there is one."""
        if self.checkpoint is None or not self.checkpoint.exists() or self.checkpoint.stat().st_mtime <= self._loaded:
            return
        stamp = self.checkpoint.stat().st_mtime
        try:
            saved = torch.load(self.checkpoint, weights_only=True)
        except (RuntimeError, EOFError, OSError):  # half written: the next batch tries again
            return
        tower = {name[6:]: value for name, value in saved["model"].items() if name.startswith("tower.")}
        self.tower.load_state_dict(tower)
        self._loaded = stamp
        logger.info("join: tower of vision step %d", saved["state"]["step"])

    def _pixels(self, view: View) -> np.ndarray:
        pixels = crop(view.page, view.zoom, view.origin, view.columns, view.rows).pixels
        return spoil(pixels, self.rng) if self.rng.random() < self.spoilt_share else pixels

    @torch.no_grad()
    def __call__(self, batch: PromptBatch, views: Sequence[View], embedding: torch.Tensor) -> torch.Tensor:
        """Visual tokens of the views, (cells, width)."""
        self.refresh()
        if self.rng.random() < self.simulated_share or not views:
            return self.simulation(batch, views, embedding)
        windows = [view_windows(self._pixels(view)) for view in views]
        with torch.autocast("cpu", torch.bfloat16):
            chunks = torch.from_numpy(np.concatenate(windows)).split(16)
            tokens = torch.cat([window_tokens(self.tower, chunk, *self._rotary) for chunk in chunks]).float()
        parts = tokens.split([len(part) for part in windows])
        ordered = [in_reading_order(part, view.columns, view.rows) for part, view in zip(parts, views, strict=True)]
        return torch.cat(ordered)


def joined_shapes(progress: float, rng: random.Random) -> Shape:
    """Whole windows; from pieces of pages to nearly whole pages."""
    small = ((8, 8, 8), (12, 8, 8), (6, 16, 8), (10, 8, 8))
    large = ((5, 16, 16), (8, 16, 8), (3, 16, 24), (10, 16, 8))
    return Shape(*rng.choice(large if rng.random() < 0.3 + progress else small), questions=14)


@dataclass(frozen=True, slots=True)
class JoinSettings:
    """How stage 3 runs."""

    seconds: float
    peak_rate: float = 7e-4
    decay_share: float = 0.5
    warmup_steps: int = 20
    looking_weight: float = 2.0
    checkpoint_seconds: float = 90.0
    log_steps: int = 25


def train_joined(
    model: Qwen2_5_VLForConditionalGeneration,
    maker: ExampleMaker,
    visual: RenderedTokens,
    settings: JoinSettings,
    folder: Path,
    evaluate: Callable[[], str] | None = None,
) -> None:
    """Train the text tower on rendered pages, one group of pages with many questions a step; resumes from join.pt."""
    text = model.model.language_model
    text.embed_tokens.weight.requires_grad_(False)
    parameters = list(text.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=settings.peak_rate, betas=(0.9, 0.98), weight_decay=0.01)
    state = {"step": 0, "seconds": 0.0}
    checkpoint = folder / "join.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        text.load_state_dict(saved["text"])
        optimiser.load_state_dict(saved["optimiser"])
        state = saved["state"]
        logger.info("join: resumed at %s", state)
    before, started, first = state["seconds"], time.monotonic(), state["step"]
    last_save, told_sum, looked_sum = started, 0.0, {}
    while state["seconds"] < settings.seconds:
        progress = state["seconds"] / settings.seconds
        rate = min(
            1.0, (state["step"] - first + 1) / settings.warmup_steps, (1 - progress) / settings.decay_share + 0.02
        )
        for group in optimiser.param_groups:
            group["lr"] = rate * settings.peak_rate
        shape = joined_shapes(progress, maker.pool.rng)
        example, views = maker.make(shape)
        tokens = visual(collate_prompts([example]), views, text.embed_tokens.weight)
        told, looked = independent_losses(model, example, tokens, LOOKING_LAYERS)
        optimiser.zero_grad(set_to_none=True)
        (told + settings.looking_weight * looked).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        told_sum += float(told.detach())
        looked_sum.setdefault(shape.pages, []).append(float(looked.detach()))
        state["step"] += 1
        state["seconds"] = before + time.monotonic() - started
        if state["step"] % settings.log_steps == 0:
            by_pages = " ".join(f"{pages}p {sum(x) / len(x):.2f}" for pages, x in sorted(looked_sum.items()))
            logger.info(
                "join step %d seconds %.0f snippet loss %.2f looking loss %s rate %.2g",
                state["step"], state["seconds"], told_sum / settings.log_steps, by_pages, rate * settings.peak_rate,
            )  # fmt: skip
            told_sum = 0.0
            looked_sum.clear()
        if evaluate is not None and state["step"] % (settings.log_steps * 6) == 0:
            logger.info("join step %d: %s", state["step"], evaluate())
        if time.monotonic() - last_save > settings.checkpoint_seconds or state["seconds"] >= settings.seconds:
            last_save = time.monotonic()
            torch.save({"text": text.state_dict(), "optimiser": optimiser.state_dict(), "state": state}, checkpoint)
