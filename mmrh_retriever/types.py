"""Values that travel between the modules. They are frozen and slotted, and need no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from mmrh_retriever.errors import PageError
from mmrh_retriever.images import as_rgb, open_image, shown_size

Box = tuple[float, float, float, float]
"""``(x0, y0, x1, y1)``, origin at the top left, in the units of the page size beside it."""

MAX_INDEX = 2**31 - 1
"""The largest index that a page may have; no document has more pages."""

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """A half-open interval of tokens, ``start <= t < stop``."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"A token span needs 0 <= start <= stop, got {self.start} and {self.stop}.")

    def __len__(self) -> int:
        return self.stop - self.start

    def shifted(self, offset: int) -> TokenSpan:
        """The same span, ``offset`` tokens further on."""
        return TokenSpan(self.start + offset, self.stop + offset)


@dataclass(frozen=True, slots=True)
class PatchGrid:
    """Which part of a page each visual token of its image sees: ``boxes[i]``, as fractions ``(x0, y0, x1, y1)``.

    Most families have one regular grid of ``rows * columns`` tokens, row by row. Families that cut an image into tiles
    have several grids, one after the other; these overlap.
    """

    boxes: FloatArray  # (visual tokens, 4)
    rows: int
    columns: int

    @classmethod
    def regular(cls, rows: int, columns: int) -> PatchGrid:
        """A plain grid over the whole page, row by row."""
        return cls(grid_boxes((0.0, 0.0, 1.0, 1.0), rows, columns), rows, columns)

    def __len__(self) -> int:
        return int(self.boxes.shape[0])


def grid_boxes(area: Box, rows: int, columns: int) -> FloatArray:
    """Boxes of a ``rows x columns`` grid over ``area``, row by row: ``(rows * columns, 4)``."""
    xs = np.linspace(area[0], area[2], columns + 1)
    ys = np.linspace(area[1], area[3], rows + 1)
    left, top = np.meshgrid(xs[:-1], ys[:-1])  # (rows, columns)
    right, bottom = np.meshgrid(xs[1:], ys[1:])
    return np.stack([left, top, right, bottom], axis=-1).reshape(-1, 4).astype(np.float32)


class ImageSource(Protocol):
    """Something that draws a page's image when it is asked to, so that a list of a thousand pages holds no pixels.

    It may have a ``pixels_key``: bytes that only images of the same pixels share. A store then finds the page undrawn.
    """

    def load(self) -> Image.Image:
        """Draw the image, or raise :class:`PageError`."""
        ...  # pragma: no cover


ImageData = Image.Image | bytes | str | Path
"""An image, the bytes of an image file, or the path of one."""


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of a page's layout: a paragraph, a table, a picture.

    ``box`` is in the units of the page's ``size`` (PDF points for PDF pages), origin at the top left.
    ``kind`` is free text; the PDF reader uses ``text``, ``title``, ``table``, ``image`` and ``figure``.
    ``image`` is what ``method="crops"`` shows the model; without one the box is cut out of its page.
    """

    box: Box
    kind: str = "text"
    text: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    image: ImageData | ImageSource | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        x0, y0, x1, y1 = map(float, self.box)
        if not (np.isfinite([x0, y0, x1, y1]).all() and x0 < x1 and y0 < y1):
            raise PageError(
                f"A region's box must be (x0, y0, x1, y1) with x0 < x1 and y0 < y1, got {tuple(self.box)}. "
                "Boxes given as (x, y, width, height) have to be converted first."
            )
        object.__setattr__(self, "box", (x0, y0, x1, y1))


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """One candidate: a page image, a page's text, or both.

    ``image`` may be a PIL image, the bytes of an image file, the path of one, or an :class:`ImageSource`.
    Format and size are checked when the page is made. Pixels are decoded when they are needed and not kept.
    ``index`` counts from 0, ``number`` from 1. ``size`` is the page's width and height in its own units: PDF
    points for PDF pages, pixels otherwise. Region boxes are in these units. Pages are compared by identity.

    Raises:
        PageError: neither image nor text, or an image that can't be read or is too small or too large.
    """

    image: ImageData | ImageSource | None = None
    text: str | None = None
    doc_id: str | None = None
    index: int = 0
    size: tuple[float, float] | None = None
    label: str | None = None
    regions: tuple[Region, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.index <= MAX_INDEX:
            got = self.index if abs(self.index) < 10**18 else "a number of over 18 digits"
            raise PageError(f"A page's index counts from 0 to at most {MAX_INDEX:,}, got {got}.", source=self.doc_id)
        if self.image is None and (self.text is None or not self.text.strip()):
            raise self.error(f"{self.name} has neither an image nor text. Give Page(image=...) or Page(text=...).")
        if isinstance(self.image, ImageData):
            opened = open_image(self.image, self.name, self.error)
            try:
                if self.size is None:
                    with self._named_damage(Exception):  # Pillow's readers raise what they happen to run into
                        object.__setattr__(self, "size", shown_size(opened))
            finally:
                if opened is not self.image:
                    opened.close()
        elif self.image is not None and not hasattr(self.image, "load"):
            raise self.error(
                f"The image of {self.name} is a {type(self.image).__name__}. Expected a PIL image, bytes, a path "
                "or an object with load()."
            )
        object.__setattr__(self, "regions", tuple(self.regions))

    @property
    def number(self) -> int:
        """The page's number for people: 1 for the first page."""
        return self.index + 1

    @property
    def name(self) -> str:
        """How messages call this page."""
        return f"page {self.index + 1}" + (f" of {self.doc_id}" if self.doc_id else "")

    @property
    def pixels_key(self) -> bytes | None:
        """Bytes that stand for the image's pixels, if its :class:`ImageSource` knows any."""
        key: bytes | None = getattr(self.image, "pixels_key", None)
        return key

    def pixels(self) -> Image.Image:
        """The page's image, decoded now, in RGB with transparency on white.

        Raises:
            PageError: the page has no image, or its file is damaged.
        """
        if self.image is None:
            raise self.error(f"{self.name} has no image.")
        with self._named_damage(OSError, ValueError, SyntaxError):
            given = self.image if isinstance(self.image, ImageData) else self.image.load()
        with self._named_damage(Exception):
            return as_rgb(open_image(given, self.name, self.error))

    def error(self, message: str) -> PageError:
        """An error about this page."""
        return PageError(message, source=self.doc_id, page=self.index)

    @contextmanager
    def _named_damage(self, *kinds: type[Exception]) -> Iterator[None]:
        try:
            yield
        except PageError:
            raise
        except kinds as error:
            described = f"{type(error).__name__}: {error}".rstrip(".")
            problem = f"The image of {self.name} is damaged ({described}). Save it again or leave the page out."
            raise self.error(problem) from error


PageLike = Page | ImageData
"""What callers may give for a page."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A page on its way through the engine: its index in the caller's list, and the number on its label."""

    index: int
    number: int
    page: Page


@dataclass(frozen=True, slots=True, eq=False)
class ScoredPage:
    """A page with its rank (1 is best), its score, and its index in the caller's list (``position``).

    ``attention_score`` is the calibrated attention mass: the mean over the selected heads of the question's mean
    attention to the page, minus the same for a null question (Li et al. 2026, arXiv 2605.27243). It is ``score``, too,
    unless ranking is hybrid: then ``score`` is the page's share among the candidates, 0 to 1, which sums to 1
    (:mod:`~mmrh_retriever.ranking.hybrid`), and ``text_score`` is BM25 over the text layer, ``None`` for pages without
    one. Scores compare pages within one call. Where they were asked for, ``token_scores`` holds one calibrated value
    per visual token, and ``grid`` says where on the page each token is. They add up to ``attention_score`` less what
    its other tokens got: the begin and end markers (if these count), the tokens that end a row or name a tile, and
    text. ``probability`` is that of the event that this page holds evidence for the question, for each page by itself
    (:mod:`~mmrh_retriever.ranking.calibration`); ``None`` where no calibration holds.
    """

    page: Page
    score: float
    rank: int
    position: int
    token_scores: FloatArray | None = None
    grid: PatchGrid | None = None
    attention_score: float | None = None
    text_score: float | None = None
    probability: float | None = None

    def __post_init__(self) -> None:
        if self.attention_score is None:
            object.__setattr__(self, "attention_score", self.score)


@dataclass(frozen=True, slots=True, eq=False)
class ScoredRegion:
    """A region of a page with its rank (1 is best) and its score (calibrated attention on its tokens)."""

    page: Page
    region: Region
    score: float
    rank: int

    @property
    def box(self) -> Box:
        """The region's rectangle in the units of the page's size."""
        return self.region.box

    @property
    def kind(self) -> str:
        """The region's kind, such as ``text`` or ``table``."""
        return self.region.kind
