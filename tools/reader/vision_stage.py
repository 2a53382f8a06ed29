"""Stage 1: the vision tower learns to read; labels are the pieces, letters and letter pairs of each visual token."""

from __future__ import annotations

import io
import logging
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from tools.reader.fast_tower import window_features, window_positions
from tools.reader.fonts import COMMON_FAMILIES, FIRST_FAMILIES, FOUR_FAMILIES, find_fonts
from tools.reader.labels import CELL, MERGE, Crop, crop, patches, random_origin
from tools.reader.model import BLANK, WIDTH, new_reader
from tools.reader.pages import CHARACTERS, PageReader, ReadablePage, Typesetting, open_pdf, typeset

logger = logging.getLogger(__name__)

LAST_LEVEL = 7
RAISE_AT = 0.62
POOL_PAGES = 160
BLANK_WEIGHT = 0.1
BLANK_SCALE = 0.8
SUM_WEIGHT = 1.0


class VisionReader(nn.Module):
    """The tower of a reader with the heads that its dense labels need."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int = 0, *, compiled: bool = False) -> None:
        super().__init__()
        reader = new_reader(tokenizer, seed)
        self.tower = reader.model.visual
        self.embedding = reader.model.language_model.embed_tokens
        self.characters = nn.Linear(WIDTH, len(CHARACTERS))
        self.pairs = nn.Linear(WIDTH, len(CHARACTERS) ** 2)
        last = self.tower.merger.mlp[2]
        self.spelling = nn.Linear(last.in_features, WIDTH)  # what the labels are read from, for training alone
        self.spelling.load_state_dict(last.state_dict())
        self.meanings: torch.Tensor | None = None  # the text tower's embedding, once there is one
        self._rotary = window_positions(self.tower)
        self._run = torch.compile(window_features) if compiled else window_features

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(windows, patches, pixels) to (windows * cells, features of the tower's last linear map)."""
        return self._run(self.tower, pixel_values, *self._rotary).flatten(0, 1)

    def sums(self, batch: Batch) -> torch.Tensor:
        """What every visual token should be for the text tower: the sum of its pieces' embeddings, (cells, WIDTH)."""
        if self.meanings is None:
            raise RuntimeError(
                "got no embedding to aim at; expected `meanings` to be set: give train_vision an embedding"
            )
        cells = batch.pixel_values.shape[0] * batch.pixel_values.shape[1] // MERGE**2
        empty = torch.ones(cells).index_fill_(0, batch.pieces[:, 0], 0.0)
        start = empty[:, None] * self.meanings[BLANK] * BLANK_SCALE
        return start.index_add(0, batch.pieces[:, 0], self.meanings[batch.pieces[:, 1]])


def set_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Softmax cross-entropy of labelled cells against their normalised label sets; labels: (labels, 2), (cell, id)."""
    log_probabilities = functional.log_softmax(logits.float(), dim=-1)
    cells = labels[:, 0]
    counts = torch.bincount(cells, minlength=len(logits)).clamp(min=1)
    losses = -log_probabilities[cells, labels[:, 1]] / counts[cells]
    return losses.sum() / len(torch.unique(cells))


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

    def __post_init__(self) -> None:
        self._reader = PageReader(self.tokenizer)
        self._one = find_fonts(FIRST_FAMILIES, upright_only=True)
        self._four = find_fonts(FOUR_FAMILIES, upright_only=True)
        self._many = find_fonts(COMMON_FAMILIES)

    def _new_page(self, level: int) -> ReadablePage:
        real_share = (0.0, 0.0, 0.0, 0.0, 0.2, 0.4, 0.4, 0.4)[level]
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
            how = Typesetting(self._many, (13, 22), (1.0, 1.8), 0.4, colours=level >= 7)
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
        if self.rng.random() < 0.02:
            pool[self.rng.randrange(len(pool))] = self._new_page(level)
        return self.rng.choice(pool)

    def crop(self, level: int, columns: int = 8, rows: int = 8) -> Crop:
        """A random crop of whole windows at this level of difficulty."""
        rng = self.rng
        page = self.page(level)
        real = page.width != page.height
        if real:
            zoom = rng.uniform(100, 122) / 72
            if rng.random() < 0.3:
                zoom = rng.uniform(13, 20) / min(max(page.size, 6), 16)
        else:
            zoom = 1.0 if level < 2 else rng.uniform(0.89, 1.11)
        x, y = random_origin(page, zoom, columns, rows, rng)
        if level == 0:
            y = round(y / CELL) * CELL
        made = crop(page, zoom, (x, y), columns, rows)
        if level >= 6 and rng.random() < 0.5:
            made = Crop(spoil(made.pixels, rng), *(getattr(made, name) for name in Crop.__slots__[1:]))
        return made


def spoil(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    """Blur from resampling, JPEG artefacts and sensor noise."""
    image = Image.fromarray(pixels)
    if rng.random() < 0.5:
        scale = rng.uniform(0.75, 1.3)
        small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        image = small.resize(image.size, Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.randint(25, 85))
        image = Image.open(buffer)
    spoilt = np.asarray(image, dtype=np.float32)
    if rng.random() < 0.3:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(2, 14), spoilt.shape)
        spoilt = spoilt + noise
    return spoilt.clip(0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Batch:
    """Crops of one window each, labels numbered over all their cells."""

    pixel_values: torch.Tensor  # (windows, patches, pixels)
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
        *(torch.from_numpy(table) for table in labels),
    )


def vision_loss(model: VisionReader, batch: Batch) -> tuple[torch.Tensor, float]:
    """Stage 1's loss, and top-1-in-cell over pieces.

    Loss over pieces plus half of the letters' and the pairs' losses, plus, once the text tower's embedding is known,
    the squared distance of the visual tokens from their pieces' sums.
    """
    with torch.autocast("cpu", torch.bfloat16):
        features = model.features(batch.pixel_values)
        tokens = model.spelling(features)
        logits = tokens @ model.embedding.weight.T
        characters, pairs = model.characters(tokens), model.pairs(tokens)
    blank = torch.ones(len(tokens), dtype=torch.bool).index_fill_(0, batch.pieces[:, 0], False)
    loss = (
        set_cross_entropy(logits, batch.pieces)
        - BLANK_WEIGHT
        * functional.log_softmax(logits[blank].float(), dim=-1)[:, BLANK].sum()
        / max(int(blank.sum()), 1)
        + 0.5 * set_cross_entropy(characters, batch.characters)
        + 0.5 * set_cross_entropy(pairs, batch.pairs)
    )
    if model.meanings is not None:
        with torch.autocast("cpu", torch.bfloat16):
            made = model.tower.merger.mlp[2](features)
        loss = loss + SUM_WEIGHT * (made.float() - model.sums(batch)).pow(2).mean() / model.meanings.var()
    return loss, top_one(logits.detach(), batch.pieces)


@torch.no_grad()
def fit_sums(model: VisionReader, batches: Iterable[Batch], ridge: float = 1.0) -> None:
    """Set the tower's last linear map by ridge regression from its features to the pieces' sums."""
    gram, target = 0.0, 0.0
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16):
            features = model.features(batch.pixel_values).float()
        features = torch.cat([features, torch.ones(len(features), 1)], dim=1).double()
        gram = gram + features.T @ features
        target = target + features.T @ model.sums(batch).double()
    solved = torch.linalg.solve(gram + ridge * torch.eye(len(gram)), target).float()
    last = model.tower.merger.mlp[2]
    last.weight.copy_(solved[:-1].T)
    last.bias.copy_(solved[-1])


@dataclass(frozen=True, slots=True)
class VisionSettings:
    """How stage 1 runs."""

    seconds: float
    crops: int = 8
    peak_rate: float = 1.0e-3
    decay_share: float = 0.2  # of the time, at the end
    warmup_steps: int = 100
    checkpoint_seconds: float = 150.0
    log_steps: int = 40
    train_embedding: bool = True


def train_vision(
    model: VisionReader,
    source: PageSource,
    settings: VisionSettings,
    folder: Path,
    meanings: torch.Tensor | None = None,
) -> None:
    """Run stage 1 until the given seconds of training, from the checkpoint in `folder` where there is one.

    `meanings` is the text tower's embedding, once that is trained: the tower then learns to give its sums, too.
    """
    model.embedding.weight.requires_grad_(settings.train_embedding)
    parameters = list(model.parameters())  # a frozen embedding stays in, so that checkpoints fit each other
    optimiser = torch.optim.AdamW(parameters, lr=settings.peak_rate, betas=(0.9, 0.98), weight_decay=0.01)
    state = {"step": 0, "level": 0, "seconds": 0.0, "average": 0.0}
    checkpoint = folder / "vision.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"], strict=False)
        state = saved["state"]
        model.meanings = saved.get("meanings")
        if "optimiser" in saved:
            optimiser.load_state_dict(saved["optimiser"])
        logger.info("vision: resumed at %s", state)
    if meanings is not None and model.meanings is None:
        model.meanings = meanings.detach().clone()
        fit_sums(model, (collate([source.crop(state["level"]) for _ in range(settings.crops)]) for _ in range(60)))
        optimiser = torch.optim.AdamW(parameters, lr=settings.peak_rate, betas=(0.9, 0.98), weight_decay=0.01)
        logger.info("vision: aims at the text tower's embedding from step %d", state["step"])
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
        batch = collate([source.crop(_mixed_level(level, source.rng)) for _ in range(settings.crops)])
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
            if model.meanings is not None:
                everything["meanings"] = model.meanings
            torch.save(everything, checkpoint)


def _mixed_level(level: int, rng: random.Random) -> int:
    return rng.randrange(level) if level and rng.random() < 0.2 else level
