"""Parts of pages for the language stages: which cells say what, and a snippet of what they say."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from tools.reader.corpus import TextDocument
from tools.reader.dialogue import Example, Layer, ShownPage, as_question
from tools.reader.fonts import COMMON_FAMILIES, find_fonts
from tools.reader.labels import CELL, cell_labels
from tools.reader.pages import PageReader, ReadablePage, Typesetting, open_pdf, typeset

logger = logging.getLogger(__name__)

BASE_ZOOM = 110 / 72


@dataclass(frozen=True, slots=True)
class View:
    """A part of a page, in cells, at a zoom."""

    page: ReadablePage
    zoom: float
    origin: tuple[float, float]
    columns: int
    rows: int

    def words_inside(self) -> np.ndarray:
        """Indices of the words that lie wholly inside, in reading order."""
        marks = self.page.places
        left, right = marks.left * self.zoom - self.origin[0], marks.right * self.zoom - self.origin[0]
        middle = marks.middle * self.zoom - self.origin[1]
        inside = (left >= 0) & (right < self.columns * CELL) & (middle >= 8) & (middle < self.rows * CELL - 8)
        return marks.ids[inside]

    def shown(self, *, as_text: bool = False, shift: tuple[int, int] = (0, 0)) -> ShownPage:
        """What the language stages see of it."""
        if as_text:
            return ShownPage(0, 0, None, tuple(self.page.words[index] for index in self.words_inside()))
        cells = cell_labels(self.page.pieces, self.zoom, self.origin, self.columns, self.rows)
        return ShownPage(self.columns, self.rows, cells, shift=shift)


@dataclass
class DocumentPool:
    """Documents of a few readable pages each; replaced one by one."""

    tokenizer: PreTrainedTokenizerFast
    documents: Sequence[TextDocument]
    words: Sequence[str]
    pdfs: Sequence[Path]
    rng: random.Random
    size: int = 300
    pages_each: int = 8
    typeset_share: float = 0.2
    drawn: bool = False  # whether pages can be rendered
    pool: list[list[ReadablePage]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reader = PageReader(self.tokenizer)
        self._fonts = find_fonts(COMMON_FAMILIES)
        self._prose = [document for document in self.documents if len(document.paragraphs) >= 12]

    def _new(self) -> list[ReadablePage]:
        if not self.pdfs or self.rng.random() < self.typeset_share:
            return self._typeset_pages()
        path = self.rng.choice(self.pdfs)
        try:
            with open_pdf(path) as document:
                numbers = self.rng.sample(range(len(document)), min(self.pages_each, len(document)))
                pages = [self._reader.read(document[number], drawn=self.drawn) for number in numbers]
        except Exception as error:  # noqa: BLE001  # a broken manual must not end a training run
            logger.warning("skipped %s: %s", path, error)
            return []
        return [page for page in pages if len(page.words) >= 60]

    def _typeset_pages(self) -> list[ReadablePage]:
        document = self.rng.choice(self._prose)
        how = Typesetting(self._fonts, (9, 13), (1.05, 1.7), 0.1)
        pages = []
        for _ in range(4):
            start = self.rng.randrange(len(document.paragraphs))
            texts = document.paragraphs[start : start + 12]
            with typeset(texts, self.words, how, self.rng) as made:
                pages.append(self._reader.read(made[0], drawn=self.drawn))
        return pages

    def document(self) -> list[ReadablePage]:
        """A document of at least one page."""
        chance = 0.006 if len(self.pool) < self.size else 0.001
        fresh = len(self.pool) < 40 or self.rng.random() < chance
        while fresh:
            pages = self._new()
            if pages:
                if len(self.pool) < self.size:
                    self.pool.append(pages)
                else:
                    self.pool[self.rng.randrange(self.size)] = pages
                break
        return self.rng.choice(self.pool)

    def view(self, page: ReadablePage, columns: int, rows: int, zoom: float | None = None) -> View:
        """A part of the page with some of its text in it."""
        zoom = zoom or BASE_ZOOM * self.rng.uniform(0.92, 1.1)
        anchor = self.rng.randrange(len(page.words))
        x = page.places.left[anchor] * zoom - self.rng.uniform(0.1, 0.6) * columns * CELL
        y = page.places.middle[anchor] * zoom - self.rng.uniform(0.1, 0.9) * rows * CELL
        x = min(max(x, 0.0), max(page.width * zoom - columns * CELL, 0.0))
        y = min(max(y, 0.0), max(page.height * zoom - rows * CELL, 0.0))
        return View(page, zoom, (float(round(x)), float(round(y))), columns, rows)


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a prompt is: pages, and cells of each; and how many questions share the pages."""

    pages: int
    columns: int
    rows: int
    questions: int = 6

    @property
    def tokens(self) -> int:
        """About how many tokens the prompt has."""
        return self.pages * (self.columns * self.rows + 12) + 18 + 26 * self.questions


class ExampleMaker:
    """Prompts with a snippet of one page behind them."""

    def __init__(self, pool: DocumentPool, question_share: float = 0.5, text_share: float = 0.15) -> None:
        self.pool = pool
        self.layer = Layer(pool.tokenizer)
        self._question_share = question_share
        self._text_share = text_share
        counts: dict[str, int] = {}
        for word in pool.words[:150]:
            counts[word] = 1
        self.common = frozenset(counts)

    def snippet(self, view: View, shortest: int = 5, longest: int = 16) -> list[str] | None:
        """A run of words of the page that follow each other inside the view."""
        inside = view.words_inside()
        if len(inside) < shortest:
            return None
        rng = self.pool.rng
        runs = np.split(inside, np.flatnonzero(np.diff(inside) != 1) + 1)
        runs = [run for run in runs if len(run) >= min(shortest, 5)]
        if not runs:
            return None
        run = rng.choices(runs, weights=[len(run) for run in runs])[0]
        length = rng.randint(shortest, longest)
        start = rng.randrange(max(len(run) - length + 1, 1))
        return [view.page.words[index] for index in run[start : start + length]]

    def views(self, shape: Shape) -> list[View]:
        """Views of different pages, half of the time all of one document."""
        rng = self.pool.rng
        pages: list[ReadablePage] = []
        one_document = rng.random() < 0.5
        while len(pages) < shape.pages:
            document = self.pool.document()
            wanted = shape.pages - len(pages) if one_document else 1
            for page in rng.sample(document, min(wanted, len(document))):
                if all(page is not other for other in pages):
                    pages.append(page)
        rng.shuffle(pages)
        return [self.pool.view(page, shape.columns, shape.rows) for page in pages]

    def _question(self, views: Sequence[View]) -> tuple[str, int] | None:
        """A snippet of one of the views, and which one; None where that has too little text."""
        rng = self.pool.rng
        gold = rng.randrange(len(views))
        words = self.snippet(views[gold])
        if words is None:
            return None
        question = as_question(words, rng, self.common) if rng.random() < self._question_share else " ".join(words)
        return (question, gold) if sum(letter.isalpha() for letter in question) >= 12 else None

    def make(self, shape: Shape) -> tuple[Example, list[View]]:
        """One example and the views that it shows as images, in order."""
        rng = self.pool.rng
        while True:
            views = self.views(shape)
            questions = [asked for _ in range(shape.questions) if (asked := self._question(views)) is not None]
            if not questions:
                continue
            shown = [
                view.shown(
                    as_text=rng.random() < self._text_share,
                    shift=(rng.randrange(30), rng.randrange(20)) if rng.random() < 0.7 else (0, 0),
                )
                for view in views
            ]
            first = rng.randrange(1, 30) if rng.random() < 0.3 else 1
            visible = [view for view, page in zip(views, shown, strict=True) if page.cells is not None]
            return self.layer.lay(shown, questions, rng, first), visible
