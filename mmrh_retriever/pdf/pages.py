"""What an open PDF says of itself, what is on its pages, and what a library must do that reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from mmrh_retriever.images import MAX_ASPECT_RATIO
from mmrh_retriever.pdf.pdf_file import PdfFile
from mmrh_retriever.types import Region

MIN_PAGE_POINTS = 4.0
"""Pages narrower or lower than this, in points, have no room for anything to read and are refused."""
MAX_PAGE_UNITS = 14_400
"""PDF's own limit for a page's side, in units of a point, or of as many points as the page's UserUnit says."""
LONGEST_LABEL = 100
"""Characters. A rule whose label would be longer gives none: nobody printed it."""


@dataclass(frozen=True, slots=True)
class PageContent:
    """What a page holds; ``size`` and the regions' boxes are in points, ``rotation`` in degrees."""

    size: tuple[float, float]
    text: str
    label: str | None
    rotation: int
    regions: tuple[Region, ...]
    warnings: list[str]


class OpenPdf(Protocol):
    """A PDF that is read: ``total`` pages under a ``title``, which may be empty."""

    total: int
    title: str

    def read(self, index: int, *, layout: bool) -> PageContent:
        """The content of the page at ``index``, with its regions if ``layout`` is set.

        Raises:
            PageError: a page that is damaged, or that is too small or too large.
        """


class PdfBackend(Protocol):
    """A library that reads and draws PDFs; a module of this folder that has these names is one."""

    READER: str
    """Its name and version."""
    FINDS_LAYOUT: bool
    """Whether it finds regions (``layout=True``)."""

    def open_pdf(self, file: PdfFile) -> OpenPdf:
        """Open a PDF.

        Raises:
            PageError: the file can't be opened as a PDF.
        """

    def draw_page(self, file: PdfFile, index: int, width: int, height: int) -> tuple[Image.Image, list[str]]:
        """The page at ``index`` as an RGB image of ``width`` x ``height`` pixels, and what the library says of it."""

    def close_documents(self) -> None:
        """Close the few documents that are kept open. Pages stay usable: they open their file again."""


def check_size(size: tuple[float, float], units: float, index: int, file: PdfFile) -> None:
    """Raise a :class:`PageError` for a page too small or too large, by its points and its longer side in own units."""
    if min(size) < MIN_PAGE_POINTS:
        problem = f"no room for anything to read. Expected at least {MIN_PAGE_POINTS:g} pt per side"
    elif max(size) > MAX_ASPECT_RATIO * min(size):
        problem = f"too long a strip to read. Expected at most {MAX_ASPECT_RATIO:g} to 1 (cut it into pages)"
    elif units > MAX_PAGE_UNITS:
        problem = f"larger than a page may be. Expected at most {MAX_PAGE_UNITS:,} units per side, as PDF allows"
    else:
        return
    raise file.error(f"is {size[0]:g} x {size[1]:g} pt: {problem}; leave the page out with pages=.", index)
