"""Stage 3: the text tower goes on with what the real vision tower makes of pages rendered on the fly."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tools.reader.fast_tower import window_positions, window_tokens
from tools.reader.labels import CELL, WINDOW_CELLS, crop, patches
from tools.reader.language_stage import PromptBatch, Simulation
from tools.reader.shown_pages import Shape, View
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
    small = (Shape(1, 8, 8), Shape(2, 8, 8), Shape(4, 8, 8), Shape(6, 8, 8), Shape(3, 16, 8))
    large = (Shape(8, 8, 8), Shape(4, 16, 16), Shape(2, 24, 24), Shape(1, 32, 40), Shape(8, 16, 8), Shape(3, 24, 16))
    return rng.choice(large if rng.random() < progress else small)
