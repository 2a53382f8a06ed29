"""Stage 1: the vision tower learns to read; labels are the pieces, letters and letter pairs of each visual token."""

from __future__ import annotations

import io
import logging
import math
import random
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from tools.reader.fast_tower import window_features, window_positions
from tools.reader.fonts import COMMON_FAMILIES, FIRST_FAMILIES, FOUR_FAMILIES, find_fonts
from tools.reader.labels import CELL, WINDOW_CELLS, Crop, patches, sheet_windows, trim
from tools.reader.model import BLANK, new_reader, working_zoom
from tools.reader.pages import CHARACTERS, PageReader, ReadablePage, Typesetting, open_pdf, typeset

logger = logging.getLogger(__name__)

LAST_LEVEL = 7
RAISE_AT = 0.62
POOL_PAGES = 160
BLANK_WEIGHT = 0.1
FIRST_SHARPNESS = 30.0  # of the cosines, as an inverse temperature
WAITING_WINDOWS = 600
LINEAR_FROM = 1.0


class VisionReader(nn.Module):
    """The tower of a reader with what its dense labels need.

    Pieces are read off as attention will look for them: by the cosine of a visual token and a piece's embedding.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int = 0, *, compiled: bool = False) -> None:
        super().__init__()
        reader = new_reader(tokenizer, seed)
        self.tower = reader.model.visual
        self.embedding = reader.model.language_model.embed_tokens
        features = self.tower.merger.mlp[2].in_features
        self.characters = nn.Linear(features, len(CHARACTERS))
        self.pairs = nn.Linear(features, len(CHARACTERS) ** 2)
        self.sharpness = nn.Parameter(torch.tensor(FIRST_SHARPNESS).log())
        self.frequency = nn.Parameter(torch.zeros(self.embedding.num_embeddings))
        self._rotary = {(WINDOW_CELLS, WINDOW_CELLS): window_positions(self.tower)}
        self._run = torch.compile(window_features) if compiled else window_features

    def features(self, pixel_values: torch.Tensor, columns: int, rows: int) -> torch.Tensor:
        """(windows, patches, pixels) to (windows * cells, features of the tower's last linear map)."""
        if (columns, rows) not in self._rotary:
            self._rotary[columns, rows] = window_positions(self.tower, columns, rows)
        run = self._run if columns == rows == WINDOW_CELLS else window_features
        return run(self.tower, pixel_values, *self._rotary[columns, rows]).flatten(0, 1)

    def piece_logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """(cells, WIDTH) visual tokens to (cells, pieces)."""
        known = functional.normalize(self.embedding.weight, dim=-1)
        cosines = functional.normalize(tokens.float(), dim=-1).to(tokens.dtype) @ known.to(tokens.dtype).T
        return cosines.float() * self.sharpness.exp() + self.frequency


def set_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Softmax cross-entropy of labelled cells against their normalised label sets; labels: (labels, 2), (cell, id)."""
    log_probabilities = functional.log_softmax(logits.float(), dim=-1)
    cells = labels[:, 0]
    counts = torch.bincount(cells, minlength=len(logits)).clamp(min=1)
    losses = -log_probabilities[cells, labels[:, 1]] / counts[cells]
    return losses.sum() / len(torch.unique(cells))


def saying_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Poisson loss of every piece in every cell, summed over pieces: a logit's exponential becomes a probability.

    Attention weighs cells by these exponentials, one against another and without a normaliser for each. Above
    LINEAR_FROM the exponential goes on as a straight line.
    """
    said = logits[labels[:, 0], labels[:, 1]].sum()
    expected = logits.clamp(max=LINEAR_FROM).exp() + math.exp(LINEAR_FROM) * functional.relu(logits - LINEAR_FROM)
    return (expected.sum() - said) / len(logits)


def top_one(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of labelled cells whose most probable id is one of the cell's own."""
    best = logits.argmax(-1)
    hits = best[labels[:, 0]] == labels[:, 1]
    return float(hits.sum()) / max(len(torch.unique(labels[:, 0])), 1)


@dataclass
class PageSource:
    """Pools of pages by level; pages are replaced one by one as training goes on."""

    tokenizer: PreTrainedTokenizerFast
    texts: list[str]
    words: list[str]
    pdfs: list[Path]
    rng: random.Random
    pools: dict[int, list[ReadablePage]] = field(default_factory=dict)
    waiting: list[tuple[int, Crop]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reader = PageReader(self.tokenizer)
        self._one = find_fonts(FIRST_FAMILIES, upright_only=True)
        self._four = find_fonts(FOUR_FAMILIES, upright_only=True)
        self._many = find_fonts(COMMON_FAMILIES)

    def _new_page(self, level: int) -> ReadablePage:
        real_share = (0.0, 0.0, 0.0, 0.0, 0.2, 0.4, 0.4, 0.6)[level]
        if self.pdfs and self.rng.random() < real_share:
            page = self._real_page()
            if page is not None:
                return page
        if level <= 2:
            how = Typesetting(self._one, (18, 18), None, 1.0)
        elif level == 3:
            how = Typesetting(self._four, (18, 18), None, 1.0)
        elif level == 4:
            how = Typesetting(self._four, (16, 20), (1.05, 1.8), 0.4)
        else:
            sizes = (18, 44) if level >= 7 and self.rng.random() < 0.3 else (11, 24)
            how = Typesetting(self._many, sizes, (1.0, 1.8), 0.4, colours=level >= 7)
        words = self.words[:1500] if level < 4 else self.words
        with typeset(self.texts, words, how, self.rng) as document:
            return self._reader.read(document[0])

    def _real_page(self) -> ReadablePage | None:
        path = self.rng.choice(self.pdfs)
        try:
            with open_pdf(path) as document:
                page = self._reader.read(document[self.rng.randrange(len(document))])
        except Exception as error:  # noqa: BLE001  # a broken manual must not end a training run
            logger.warning("skipped %s: %s", path, error)
            return None
        return page if len(page.words) >= 40 else None

    def page(self, level: int) -> ReadablePage:
        """A page of the level's pool."""
        pool = self.pools.setdefault(level, [])
        if len(pool) < 24 or (len(pool) < POOL_PAGES and self.rng.random() < 0.2):
            pool.append(self._new_page(level))
            return pool[-1]
        if self.rng.random() < 0.25:
            pool[self.rng.randrange(len(pool))] = self._new_page(level)
        return self.rng.choice(pool)

    def windows(self, level: int) -> list[Crop]:
        """A page of this level, cut into windows; most of those that say nothing are left out."""
        rng = self.rng
        page = self.page(level)
        if page.width != page.height:  # a real one
            zoom = working_zoom(page.width, page.height) * rng.uniform(0.88, 1.08)
            if rng.random() < 0.25:
                zoom = rng.uniform(13, 20) / min(max(page.size, 6), 16)
        else:
            zoom = 1.0 if level < 2 else rng.uniform(0.89, 1.11)
        side = WINDOW_CELLS * CELL
        shift = (rng.randrange(side), rng.randrange(side) if level else 0)
        spoiling = partial(spoil, rng=rng) if level >= 6 and rng.random() < 0.5 else None
        found = sheet_windows(page, zoom, shift, spoiling)
        return [one for one in found if len(one.pieces) >= 4 or rng.random() < 0.08]

    def batch(self, level: int, count: int) -> list[Crop]:
        """Windows of many pages, each used once; now and then all cut to what a page's edge leaves of them."""
        rng = self.rng
        while len(self.waiting) < WAITING_WINDOWS:
            self.waiting.extend((level, one) for one in self.windows(_mixed_level(level, rng)))
        rng.shuffle(self.waiting)
        taken = [self.waiting.pop()[1] for _ in range(count)]
        if level >= 5 and rng.random() < 0.1:
            size = rng.randrange(1, WINDOW_CELLS)
            columns, rows = (size, WINDOW_CELLS) if rng.random() < 0.7 else (WINDOW_CELLS, size)
            taken = [trim(one, columns, rows) for one in taken]
        return taken


def spoil(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    """What copying and scanning does: turning, blur, fading, JPEG artefacts, noise, black and white."""
    image = Image.fromarray(pixels)
    if rng.random() < 0.3:
        image = image.rotate(rng.uniform(-0.4, 0.4), Image.Resampling.BICUBIC, fillcolor=image.getpixel((1, 1)))
    if rng.random() < 0.5:
        scale = rng.uniform(0.7, 1.2)
        small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        image = small.resize(image.size, Image.Resampling.BICUBIC)
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 0.9)))
    if rng.random() < 0.15:
        limit = rng.randint(110, 190)
        image = image.convert("L").point([255 * (grey > limit) for grey in range(256)]).convert("RGB")
    if rng.random() < 0.4:
        low, high = rng.uniform(0, 70), rng.uniform(185, 255)
        image = image.point([round(low + (high - low) * grey / 255) for grey in range(256)] * 3)
    if rng.random() < 0.5:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.randint(25, 85))
        image = Image.open(buffer)
    spoilt = np.asarray(image)
    if rng.random() < 0.3:
        generator = np.random.default_rng(rng.getrandbits(32))
        tile = generator.normal(0, rng.uniform(2, 14), (256, 256, 1)).astype(np.float32)
        repeats = (-(-spoilt.shape[0] // 256), -(-spoilt.shape[1] // 256), 1)
        noise = np.tile(tile, repeats)[: spoilt.shape[0], : spoilt.shape[1]]
        spoilt = (spoilt + noise).clip(0, 255).astype(np.uint8)
    return spoilt


@dataclass(frozen=True, slots=True)
class Batch:
    """Crops of one window each, labels numbered over all their cells."""

    pixel_values: torch.Tensor  # (windows, patches, pixels)
    columns: int
    rows: int
    pieces: torch.Tensor
    characters: torch.Tensor
    pairs: torch.Tensor


def collate(crops: list[Crop]) -> Batch:
    """Number the cells of the crops through."""
    starts = np.cumsum([0] + [one.columns * one.rows for one in crops])
    labels = [
        np.concatenate([getattr(one, name) + np.array([start, 0]) for one, start in zip(crops, starts, strict=False)])
        for name in ("pieces", "characters", "pairs")
    ]
    return Batch(
        torch.from_numpy(np.stack([patches(one.pixels) for one in crops])),
        crops[0].columns,
        crops[0].rows,
        *(torch.from_numpy(table) for table in labels),
    )


def vision_loss(model: VisionReader, batch: Batch) -> tuple[torch.Tensor, float]:
    """Stage 1's loss, and top-1-in-cell over pieces.

    Which pieces a cell says, among all pieces and each for itself; half of the letters' and the pairs' losses.
    """
    with torch.autocast("cpu", torch.bfloat16):
        features = model.features(batch.pixel_values, batch.columns, batch.rows)
        tokens = model.tower.merger.mlp[2](features)
        logits = model.piece_logits(tokens)
        characters, pairs = model.characters(features), model.pairs(features)
    blank = torch.ones(len(tokens), dtype=torch.bool).index_fill_(0, batch.pieces[:, 0], False)
    loss = (
        set_cross_entropy(logits, batch.pieces)
        + saying_loss(logits, batch.pieces)
        - BLANK_WEIGHT * functional.log_softmax(logits[blank], dim=-1)[:, BLANK].sum() / max(int(blank.sum()), 1)
        + 0.5 * set_cross_entropy(characters, batch.characters)
        + 0.5 * set_cross_entropy(pairs, batch.pairs)
    )
    return loss, top_one(logits.detach(), batch.pieces)


@dataclass(frozen=True, slots=True)
class VisionSettings:
    """How stage 1 runs."""

    seconds: float
    crops: int = 16
    peak_rate: float = 1.0e-3
    decay_share: float = 0.2  # of the time, at the end
    warmup_steps: int = 100
    checkpoint_seconds: float = 150.0
    log_steps: int = 40


def train_vision(model: VisionReader, source: PageSource, settings: VisionSettings, folder: Path) -> None:
    """Run stage 1 until the given seconds of training, from the checkpoint in `folder` where there is one."""
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=settings.peak_rate, betas=(0.9, 0.98), weight_decay=0.01)
    state = {"step": 0, "level": 0, "seconds": 0.0, "average": 0.0}
    checkpoint = folder / "vision.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        state = saved["state"]
        if "optimiser" in saved:
            optimiser.load_state_dict(saved["optimiser"])
        logger.info("vision: resumed at %s", state)
    started = last_save = time.monotonic()
    before = state["seconds"]
    level_step, losses = state["step"], []
    while state["seconds"] < settings.seconds:
        left = 1 - state["seconds"] / settings.seconds
        rate = settings.peak_rate * min(
            1.0, (state["step"] + 1) / settings.warmup_steps, left / settings.decay_share + 0.02
        )
        for group in optimiser.param_groups:
            group["lr"] = rate
        level = state["level"]
        batch = collate(source.batch(level, settings.crops))
        loss, accuracy = vision_loss(model, batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
        state["step"] += 1
        state["average"] = 0.97 * state["average"] + 0.03 * accuracy
        state["seconds"] = before + time.monotonic() - started
        if state["step"] % settings.log_steps == 0:
            logger.info(
                "vision step %d level %d seconds %.0f loss %.3f top-1-in-cell %.3f rate %.2g",
                state["step"], level, state["seconds"], sum(losses) / len(losses), state["average"], rate,
            )  # fmt: skip
            losses.clear()
        if state["average"] > RAISE_AT and level < LAST_LEVEL and state["step"] - level_step >= 100:
            state["level"], level_step = level + 1, state["step"]
            state["average"] -= 0.1  # so that a level is not left on the strength of the one before
            logger.info("vision: level %d from step %d", state["level"], state["step"])
        if time.monotonic() - last_save > settings.checkpoint_seconds or state["seconds"] >= settings.seconds:
            last_save = time.monotonic()
            everything = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "state": state}
            torch.save(everything, checkpoint)


def _mixed_level(level: int, rng: random.Random) -> int:
    return rng.randrange(max(level - 3, 0), level) if level and rng.random() < 0.2 else level
