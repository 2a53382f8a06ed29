"""Pages as the vision tower sees them, kept for the language stage: a shelf of documents, replaced one by one."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pymupdf
import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedTokenizerFast

from tools.reader.corpus import TextDocument
from tools.reader.fonts import COMMON_FAMILIES, find_fonts
from tools.reader.labels import MERGE
from tools.reader.model import image_processor, working_zoom
from tools.reader.pages import PageReader, Typesetting, open_pdf, typeset
from tools.reader.vision_stage import spoil

logger = logging.getLogger(__name__)

FEWEST_WORDS = 40

Kept = TypeVar("Kept")


@dataclass(frozen=True, slots=True)
class KeptPage:
    """A whole page's visual tokens and words."""

    tokens: torch.Tensor  # (rows * columns, width) bfloat16
    columns: int
    rows: int
    words: tuple[str, ...]  # in reading order
    left: np.ndarray  # (words,): of each word, in cells
    right: np.ndarray
    middle: np.ndarray  # (words,): height, in cells


@dataclass(frozen=True, slots=True)
class View:
    """A rectangle of a page's cells."""

    page: KeptPage
    column: int
    row: int
    columns: int
    rows: int

    def tokens(self) -> torch.Tensor:
        """Its visual tokens, row by row: (rows * columns, width)."""
        grid = self.page.tokens.unflatten(0, (self.page.rows, self.page.columns))
        return grid[self.row : self.row + self.rows, self.column : self.column + self.columns].flatten(0, 1)

    def words_inside(self) -> np.ndarray:
        """Indices of the words that lie wholly inside, in reading order."""
        page = self.page
        inside = (page.left >= self.column) & (page.right <= self.column + self.columns)
        inside &= (page.middle >= self.row + 0.25) & (page.middle <= self.row + self.rows - 0.25)
        return np.flatnonzero(inside)


def visual_tokens(tower: nn.Module, image: Image.Image) -> tuple[torch.Tensor, int, int]:
    """A page's visual tokens, (cells, width), with its columns and rows; through the stock processor and tower."""
    inputs = image_processor()(images=[image], return_tensors="pt")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        tokens = tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
    _, height, width = inputs["image_grid_thw"][0].tolist()
    return tokens.to(torch.bfloat16), width // MERGE, height // MERGE


def draw_pages(documents: Sequence[Sequence[Kept]], count: int, rng: random.Random) -> list[Kept]:
    """Different pages, mostly all of one document as far as it goes: what stands on all of them must not tell."""
    found: list[Kept] = []
    one_document = rng.random() < 0.75
    while len(found) < count:
        document = rng.choice(documents)
        wanted = count - len(found) if one_document else 1
        for page in rng.sample(document, min(wanted, len(document))):
            if all(page is not other for other in found):
                found.append(page)
    rng.shuffle(found)
    return found


@dataclass
class Shelf:
    """Documents of a few pages each."""

    tower: nn.Module
    tokenizer: PreTrainedTokenizerFast
    texts: Sequence[TextDocument]
    words: Sequence[str]
    pdfs: Sequence[Path]
    rng: random.Random
    size: int = 40
    pages_each: int = 16
    typeset_share: float = 0.25
    spoilt_share: float = 0.2
    documents: list[list[KeptPage]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reader = PageReader(self.tokenizer)
        self._fonts = find_fonts(COMMON_FAMILIES)
        self._prose = [document for document in self.texts if len(document.paragraphs) >= 12]

    def _keep(self, page: pymupdf.Page) -> KeptPage | None:
        read = self._reader.read(page, drawn=False)
        if len(read.words) < FEWEST_WORDS or not 0.2 < read.width / read.height < 5:
            return None
        zoom = working_zoom(read.width, read.height)
        pixmap = page.get_pixmap(matrix=pymupdf.Matrix(zoom, zoom), alpha=False, colorspace=pymupdf.csRGB)
        pixels = np.frombuffer(pixmap.samples, np.uint8).reshape(pixmap.height, pixmap.width, 3)
        if self.rng.random() < self.spoilt_share:
            pixels = spoil(pixels, self.rng)
        tokens, columns, rows = visual_tokens(self.tower, Image.fromarray(pixels))
        across, down = columns / read.width, rows / read.height
        marks = read.word_marks
        return KeptPage(
            tokens, columns, rows, read.words, marks.left * across, marks.right * across, marks.middle * down
        )

    def _new(self) -> list[KeptPage]:
        if not self.pdfs or self.rng.random() < self.typeset_share:
            return self._typeset()
        path = self.rng.choice(self.pdfs)
        try:
            with open_pdf(path) as document:
                numbers = self.rng.sample(range(len(document)), min(self.pages_each, len(document)))
                found = [self._keep(document[number]) for number in numbers]
        except Exception as error:  # noqa: BLE001  # a broken manual must not end a training run
            logger.warning("skipped %s: %s", path, error)
            return []
        return [page for page in found if page is not None]

    def _typeset(self) -> list[KeptPage]:
        document = self.rng.choice(self._prose)
        how = Typesetting(self._fonts, (9, 15), (1.05, 1.7), 0.1, colours=True)
        found = []
        for _ in range(self.pages_each - 2):
            start = self.rng.randrange(len(document.paragraphs))
            with typeset(document.paragraphs[start : start + 12], self.words, how, self.rng) as made:
                found.append(self._keep(made[0]))
        return [page for page in found if page is not None]

    def renew(self) -> None:
        """Encode one more document; on a full shelf it replaces another."""
        pages = self._new()
        if not pages:
            return
        if len(self.documents) < self.size:
            self.documents.append(pages)
        else:
            self.documents[self.rng.randrange(self.size)] = pages

    def change(self, how: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Change the visual tokens of every page, (cells, width), as the tower's last map has been changed."""
        self.documents = [
            [replace(page, tokens=how(page.tokens.float()).to(torch.bfloat16)) for page in document]
            for document in self.documents
        ]

    def pages(self, count: int) -> list[KeptPage]:
        """Different pages, mostly all of one document."""
        return draw_pages(self.documents, count, self.rng)

    def view(self, page: KeptPage, columns: int, rows: int) -> View:
        """A part of the page with some of its words in it."""
        columns, rows = min(columns, page.columns), min(rows, page.rows)
        anchor = self.rng.randrange(len(page.words))
        column = int(page.left[anchor] - self.rng.uniform(0.1, 0.6) * columns)
        row = int(page.middle[anchor] - self.rng.uniform(0.1, 0.9) * rows)
        return View(
            page, min(max(column, 0), page.columns - columns), min(max(row, 0), page.rows - rows), columns, rows
        )
