"""Values that travel between the modules: frozen, slotted, without behaviour that needs a model."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from mmrh_retriever.errors import PageError

MAX_IMAGE_PIXELS = 64_000_000
"""Images with more pixels than this are refused before they are decoded (a decompression bomb)."""
MIN_IMAGE_SIDE = 4
"""Images narrower or lower than this, in pixels, hold nothing to read and are refused."""
MAX_ASPECT_RATIO = 150.0
"""Longer side over shorter side; beyond it no image processor keeps the picture legible."""

Box = tuple[float, float, float, float]
"""``(x0, y0, x1, y1)``, origin at the top left, in the units of the page size beside it."""

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """A half-open interval of token positions, ``start <= t < stop``."""

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
    """How a page image lies on its visual tokens.

    ``boxes[i]`` is the part of the page, in fractions of its width and height, that visual token ``i`` of
    the page's image sees. Most families lay one regular grid (``rows * columns`` tokens, row by row);
    families that cut an image into crops have several grids, one after the other, and cover a place
    more than once.
    """

    boxes: FloatArray  # (visual tokens, 4) as fractions x0, y0, x1, y1
    rows: int
    columns: int

    @classmethod
    def regular(cls, rows: int, columns: int) -> PatchGrid:
        """A plain grid over the whole page, row by row."""
        return cls(grid_boxes((0.0, 0.0, 1.0, 1.0), rows, columns), rows, columns)

    @property
    def is_regular(self) -> bool:
        """Whether the tokens are one row-by-row grid."""
        return len(self) == self.rows * self.columns

    def __len__(self) -> int:
        return int(self.boxes.shape[0])


def grid_boxes(area: Box, rows: int, columns: int) -> FloatArray:
    """Boxes of a ``rows x columns`` grid laid over ``area``, row by row: ``(rows * columns, 4)``."""
    x0, y0, x1, y1 = area
    xs = np.linspace(x0, x1, columns + 1, dtype=np.float64)
    ys = np.linspace(y0, y1, rows + 1, dtype=np.float64)
    left, top = np.meshgrid(xs[:-1], ys[:-1])  # (rows, columns)
    right, bottom = np.meshgrid(xs[1:], ys[1:])
    return np.stack([left, top, right, bottom], axis=-1).reshape(-1, 4).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of a page's layout: a paragraph, a table, a picture.

    ``box`` is in the units of the page's ``size`` (PDF points for PDF pages), origin at the top left.
    ``kind`` is free text; the PDF reader uses ``text``, ``title``, ``table``, ``image`` and ``figure``.
    """

    box: Box
    kind: str = "text"
    text: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        x0, y0, x1, y1 = (float(v) for v in self.box)
        if not (np.isfinite([x0, y0, x1, y1]).all() and x0 < x1 and y0 < y1):
            raise PageError(
                f"A region's box must be (x0, y0, x1, y1) with x0 < x1 and y0 < y1, got {tuple(self.box)}. "
                "Boxes given as (x, y, width, height) have to be converted first."
            )
        object.__setattr__(self, "box", (x0, y0, x1, y1))


class ImageSource(Protocol):
    """Something that draws a page's image when it is asked to, such as a page of a PDF file.

    A list of a thousand pages then holds no pixels. ``load`` raises :class:`PageError` where it can't.
    """

    def load(self) -> Image.Image:
        """Draw the image."""
        ...  # pragma: no cover


ImageInput = Image.Image | bytes | str | Path | ImageSource
"""What a page's image may be given as."""


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """One candidate: a page image, a page's text, or both.

    ``image`` may be a PIL image, the bytes of an image file, the path of one, or an :class:`ImageSource`.
    Its head is checked when the page is made; pixels are decoded only when they are needed and are not
    kept. ``index`` counts from 0, ``number`` from 1. ``size`` is the page's width and height in its own
    units (PDF points for PDF pages, pixels otherwise); region boxes are in these units. Pages are compared
    by identity.

    Raises:
        PageError: neither image nor text, or an image that can't be read or is too small or too large.
    """

    image: ImageInput | None = None
    text: str | None = None
    doc_id: str | None = None
    index: int = 0
    size: tuple[float, float] | None = None
    label: str | None = None
    regions: tuple[Region, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.index < 0:
            raise PageError(f"A page's index counts from 0, got {self.index}.", source=self.doc_id)
        if self.image is None and (self.text is None or not self.text.strip()):
            raise PageError(
                f"{self.name} has neither an image nor text. Give Page(image=...) or Page(text=...).",
                source=self.doc_id,
                page=self.index,
            )
        if isinstance(self.image, (Image.Image, bytes, str, Path)):
            opened = open_image(self.image, name=self.name, source=self.doc_id, page=self.index)
            if self.size is None:
                wide, high = float(opened.width), float(opened.height)
                turned = _is_turned(opened)
                object.__setattr__(self, "size", (high, wide) if turned else (wide, high))
            if opened is not self.image:
                opened.close()
        elif self.image is not None and not hasattr(self.image, "load"):
            raise PageError(
                f"The image of {self.name} is a {type(self.image).__name__}. Expected a PIL image, bytes, a path "
                "or an object with load().",
                source=self.doc_id,
                page=self.index,
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

    def pixels(self) -> Image.Image:
        """The page's image, decoded now and in RGB (transparency lies on white).

        Raises:
            PageError: the page has no image, or its file is damaged.
        """
        if self.image is None:
            raise PageError(f"{self.name} has no image.", source=self.doc_id, page=self.index)
        try:
            if isinstance(self.image, (Image.Image, bytes, str, Path)):
                image = open_image(self.image, name=self.name, source=self.doc_id, page=self.index)
            else:
                image = open_image(self.image.load(), name=self.name, source=self.doc_id, page=self.index)
            image = ImageOps.exif_transpose(image)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                layered = image.convert("RGBA")
                ground = Image.new("RGBA", layered.size, (255, 255, 255, 255))
                return Image.alpha_composite(ground, layered).convert("RGB")
            if image.mode.startswith("I") or image.mode == "F":
                return sixteen_bit_to_grey(image).convert("RGB")
            return image.convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            if isinstance(error, PageError):
                raise
            raise PageError(
                f"The image of {self.name} is damaged: {error}. Save it again or leave the page out.",
                source=self.doc_id,
                page=self.index,
            ) from error


def _is_turned(image: Image.Image) -> bool:
    """Whether a photograph's notes say that it lies on its side; asked of formats that tell without decoding."""
    if image.format not in ("JPEG", "MPO", "TIFF", "WEBP"):
        return False
    return int(image.getexif().get(ExifTags.Base.Orientation, 1)) >= 5


def sixteen_bit_to_grey(image: Image.Image) -> Image.Image:
    """A 16 or 32-bit grey image stretched onto 0 to 255 (Pillow's own conversion clips it to white)."""
    values = np.asarray(image, dtype=np.float64)
    top = 65535.0 if values.max() > 255 else 255.0
    return Image.fromarray(np.clip(values / top * 255.0, 0, 255).astype(np.uint8))


def open_image(
    image: Image.Image | bytes | str | Path,
    *,
    name: str = "the image",
    source: str | None = None,
    page: int | None = None,
) -> Image.Image:
    """Open an image from memory or disk and check its size before any pixel is decoded.

    Raises:
        PageError: not an image, missing, truncated at its head, too small, too large or too long.
    """

    def refuse(problem: str) -> PageError:
        where = f" ({image})" if isinstance(image, (str, Path)) else ""
        return PageError(f"{name[0].upper()}{name[1:]}{where}: {problem}", source=source, page=page)

    if isinstance(image, Image.Image):
        opened = image
    elif not isinstance(image, (bytes, str, Path)):
        raise refuse(f"expected a PIL image, bytes or a path, got {type(image).__name__}.")
    else:
        stream: io.BytesIO | Path = io.BytesIO(image) if isinstance(image, bytes) else Path(image)
        try:
            opened = Image.open(stream)
        except FileNotFoundError as error:
            raise refuse("no such file. Check the path.") from error
        except Image.DecompressionBombError as error:
            raise refuse(f"{error}. At most {MAX_IMAGE_PIXELS:,} pixels are accepted.") from error
        except (OSError, ValueError, SyntaxError) as error:
            raise refuse(
                "these bytes are not an image that Pillow can read. Expected PNG, JPEG, WebP, TIFF or the "
                "like; PDF files go through read_pdf()."
            ) from error
    width, height = opened.size
    if min(width, height) < MIN_IMAGE_SIDE:
        raise refuse(f"{width} x {height} pixels hold nothing to read; at least {MIN_IMAGE_SIDE} a side.")
    if width * height > MAX_IMAGE_PIXELS:
        raise refuse(f"{width} x {height} pixels are more than the {MAX_IMAGE_PIXELS:,} accepted. Scale the page down.")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise refuse(f"{width} x {height} pixels are too long a strip. Cut it into pages.")
    return opened


PageLike = Page | Image.Image | bytes | str | Path
"""What callers may give for a page: a page, an image, the bytes of an image file, or the path of one."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoredPage:
    """A page with its rank (1 is best) and its score.

    ``score`` is the calibrated attention mass of METHOD definition 4: the mean over the selected heads of
    the question's mean attention to the page, minus the same for a null question. Scores compare pages
    within one call; they are never normalised over the candidates. ``token_scores`` has one value for each
    visual token of the page's image (calibrated likewise; their sum is the image's part of ``score``) when
    it was asked for, and ``grid`` says where on the page each token lies.
    """

    page: Page
    score: float
    rank: int
    position: int
    token_scores: FloatArray | None = None
    grid: PatchGrid | None = None


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
