"""An open PDF in this process: what it says of itself, what is on its pages, and their pixels."""

from __future__ import annotations

from dataclasses import dataclass

import pymupdf
from PIL import Image

from mmrh_retriever.images import MAX_ASPECT_RATIO
from mmrh_retriever.pdf.labels import read_labels
from mmrh_retriever.pdf.layout import layout_regions
from mmrh_retriever.pdf.mupdf import PdfFile, open_document, open_page
from mmrh_retriever.pdf.text import page_text, text_blocks, without_surrogates
from mmrh_retriever.types import Region

MIN_PAGE_POINTS = 4.0
"""Pages narrower or lower than this, in points, have no room for anything to read and are refused."""
MAX_PAGE_UNITS = 14_400
"""PDF's own limit for a page's side, in units of a point, or of as many points as the page's UserUnit says."""


@dataclass(frozen=True, slots=True)
class PageContent:
    """What a page holds; ``size`` and the regions' boxes are in points, ``rotation`` in degrees."""

    size: tuple[float, float]
    text: str
    label: str | None
    rotation: int
    regions: tuple[Region, ...]
    warnings: list[str]


class OpenPdf:
    """A PDF that this process reads: ``total`` pages under a ``title``, which may be empty.

    Raises:
        PageError: the file can't be opened as a PDF.
    """

    def __init__(self, file: PdfFile) -> None:
        self.file = file
        with open_document(file) as document:
            self.total = int(document.page_count)
            self.title = without_surrogates((document.metadata or {}).get("title") or "")
            self._labels = read_labels(document)

    def read(self, index: int, *, layout: bool) -> PageContent:
        """The content of the page at ``index``, with its regions if ``layout`` is set.

        Raises:
            PageError: a page that is damaged, or that is too small or too large.
        """
        with open_page(self.file, index) as (page, warnings):
            size = (float(page.rect.width), float(page.rect.height))
            _check_size(size, page, self.file)
            blocks = text_blocks(page)
            regions = layout_regions(page, blocks) if layout else ()
            rotation = int(page.rotation)
        return PageContent(size, page_text(blocks), self._labels.label(index), rotation, regions, warnings)


def draw_page(file: PdfFile, index: int, width: int, height: int) -> tuple[Image.Image, list[str]]:
    """The page at ``index`` as an RGB image of ``width`` x ``height`` pixels, and MuPDF's messages about it."""
    with open_page(file, index) as (page, warnings):
        zoom = pymupdf.Matrix(width / page.rect.width, height / page.rect.height)
        drawn = page.get_pixmap(matrix=zoom, colorspace=pymupdf.csRGB, alpha=False)
        image = Image.frombytes("RGB", (drawn.width, drawn.height), drawn.samples)
    return image, warnings


def _check_size(size: tuple[float, float], page: pymupdf.Page, file: PdfFile) -> None:
    # Both boxes are in units of the page, before UserUnit; what is displayed is what they share.
    units = max(min(page.cropbox.width, page.mediabox.width), min(page.cropbox.height, page.mediabox.height))
    if min(size) < MIN_PAGE_POINTS:
        problem = f"no room for anything to read. Expected at least {MIN_PAGE_POINTS:g} pt per side"
    elif max(size) > MAX_ASPECT_RATIO * min(size):
        problem = f"too long a strip to read. Expected at most {MAX_ASPECT_RATIO:g} to 1 (cut it into pages)"
    elif units > MAX_PAGE_UNITS:
        problem = f"larger than a page may be. Expected at most {MAX_PAGE_UNITS:,} units per side, as PDF allows"
    else:
        return
    raise file.error(f"is {size[0]:g} x {size[1]:g} pt: {problem}; leave the page out with pages=.", page.number)
