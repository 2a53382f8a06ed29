"""PDF files as pages: text at once, pixels when asked for, and never more than one page of them.

Reading a file opens it, takes every page's text, size and label, and gives pages whose images are
:class:`PdfPageImage` objects: small descriptions that draw the page when asked to.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mmrh_retriever.errors import PageError
from mmrh_retriever.files import is_folder, is_special
from mmrh_retriever.images import open_image
from mmrh_retriever.pdf.backends import PdfBackendName, backend_of, choose_backend
from mmrh_retriever.pdf.damage import means_damage
from mmrh_retriever.pdf.isolated import IsolatedPdf, draw_isolated
from mmrh_retriever.pdf.pdf_file import BEGINNING, PdfFile, WorkerLimits, begins_a_pdf, stamp_of
from mmrh_retriever.types import Page

DEFAULT_MAX_PIXELS = 2_000_000
"""A page's default pixel budget: about 147 dpi for a Letter page."""
MAX_RENDERED_PIXELS = 20_000_000
"""No page is drawn with more pixels than this, whatever is asked for (60 MB)."""
MAX_BUDGET_DPI = 300.0
"""Small pages are not blown up past this resolution to fill their budget; ``dpi=`` may go further."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class PdfPageImage:
    """A page of a PDF that is drawn when asked for: an :class:`~mmrh_retriever.types.ImageSource`.

    ``index`` counts from 0; ``width`` and ``height`` are in pixels. ``pixels_key`` may stand for the file's content,
    the page and this size.
    """

    file: PdfFile
    index: int
    width: int
    height: int
    pixels_key: bytes | None = None

    def load(self) -> Image.Image:
        """Draw the page: an RGB image of ``width`` x ``height`` pixels, which nothing here keeps."""
        draw = backend_of(self.file.backend).draw_page if self.file.limits is None else draw_isolated
        image, warnings = draw(self.file, self.index, self.width, self.height)
        for warning in warnings:
            level = logging.WARNING if means_damage(warning) else logging.DEBUG
            logger.log(level, "Page %d of %s: %s", self.index + 1, self.file.name, warning)
        return image


def read_pdf(
    source: str | os.PathLike[str] | bytes,
    *,
    pages: Iterable[int] | str | None = None,
    password: str | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    dpi: float | None = None,
    layout: bool = False,
    doc_id: str | None = None,
    strict: bool = True,
    isolate: bool | WorkerLimits = False,
    backend: PdfBackendName = "auto",
) -> list[Page]:
    """Read a PDF's pages: their text now, their images when they are needed.

    Args:
        source: A path, or the bytes of a PDF.
        pages: Which pages, each once, in the order first named: 0-based indices, or a string as people write it,
            counting from 1: ``"1-3,7"``, ``"12-"`` to the end. All by default.
        password: For encrypted files.
        max_pixels: An image has at most this many pixels, and close to it, but never more than 300 dpi.
        dpi: Draw at this resolution instead. Over ``MAX_RENDERED_PIXELS`` it is lowered.
        layout: Find text blocks, titles, tables, images and figures, and give them as ``Page.regions``.
        doc_id: The pages' ``doc_id``; the file's name by default, ``None`` for bytes.
        strict: Raise for damaged pages and for files cut short. Otherwise take what can be read; MuPDF's messages
            then stand in ``metadata["warnings"]`` and, for damage met while drawing, in the log. MuPDF reports pictures
            that end early, but for a JPEG whose data lack rows in front of a proper end mark: it is drawn as it is.
        isolate: For files that are not trusted: a worker process reads and draws, and a page that is not done within
            these limits (those of ``WorkerLimits()`` for ``True``) raises. Starting it takes a second or two.
        backend: What reads and draws: ``"pymupdf"`` (AGPL-3.0 or commercial), ``"pdfium"`` (permissive), or ``"auto"``:
            PyMuPDF where it is installed. PDFium finds no layout and reports less damage; see ``docs/pdf.md``.

    Returns:
        The pages. ``text`` is the text layer in reading order or ``None``, ``label`` the printed page label, ``size``
        the width and height in points as displayed (rotated, cropped). ``metadata`` is ready for JSON: ``path``
        (absolute, for files), ``total_pages``, ``rotation`` in degrees, and, where there are any, ``title`` and
        ``warnings``.

    Raises:
        PageError: missing, empty, encrypted, truncated or damaged file; not a PDF; no such page; a page too small, too
            large or too long to read.
        ValueError: ``max_pixels`` or ``dpi`` is not positive.
        TypeError: ``source`` or ``pages`` is of another type.
        SettingsError: no such backend, or one that finds no layout for ``layout=True``.
        ImportError: the backend is not installed.
    """
    return list(
        iter_pdf(
            source, pages=pages, password=password, max_pixels=max_pixels, dpi=dpi, layout=layout, doc_id=doc_id,
            strict=strict, isolate=isolate, backend=backend,
        )
    )  # fmt: skip


def iter_pdf(
    source: str | os.PathLike[str] | bytes,
    *,
    pages: Iterable[int] | str | None = None,
    password: str | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    dpi: float | None = None,
    layout: bool = False,
    doc_id: str | None = None,
    strict: bool = True,
    isolate: bool | WorkerLimits = False,
    backend: PdfBackendName = "auto",
) -> Iterator[Page]:
    """Read a PDF page by page: :func:`read_pdf` as a stream.

    The file and ``pages`` are checked at once, each page when it is taken.
    """
    if max_pixels < 1:
        raise ValueError(f"max_pixels must be at least 1, got {max_pixels}.")
    if dpi is not None and not (dpi > 0 and math.isfinite(dpi)):
        raise ValueError(f"dpi must be a positive number, got {dpi}.")
    limits = isolate if isinstance(isolate, WorkerLimits) else WorkerLimits() if isolate else None
    reading = {
        "password": password,
        "strict": strict,
        "limits": limits,
        "backend": choose_backend(backend, layout=layout),
    }
    file = _locate(source, doc_id, reading)
    document = backend_of(file.backend).open_pdf(file) if limits is None else IsolatedPdf(file)
    chosen = _choose_pages(pages, document.total, file)
    if doc_id is None and file.path is not None:
        doc_id = file.path.name
    shared: dict[str, Any] = {"path": str(file.path)} if file.path is not None else {}
    shared |= {"total_pages": document.total} | ({"title": document.title} if document.title else {})

    def read(index: int) -> Page:
        found = document.read(index, layout=layout)
        metadata = {**shared, "rotation": found.rotation} | ({"warnings": found.warnings} if found.warnings else {})
        image = PdfPageImage(file, index, *pixel_size(found.size, max_pixels, dpi))
        return Page(image, found.text or None, doc_id, index, found.size, found.label, found.regions, metadata)

    return map(read, chosen)


def parse_page_range(text: str, *, total: int) -> list[int]:
    """0-based indices for a page range as people write it, ``"1-3,7"`` or ``"12-"``, each page once."""
    indices: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*0*(\d{1,18})\s*(?:(-)\s*0*(\d{1,18})?)?\s*", part, re.ASCII)
        first = int(match[1]) if match else 0
        last = int(match[3] or total) if match and match[2] else first
        if not 1 <= first <= last <= total:
            raise PageError(
                f"pages={_short(text)} names no pages of this document at {_short(part)}. Expected numbers and ranges "
                f"between 1 and {total}, such as '1-3,7'."
            )
        indices.update(dict.fromkeys(range(first - 1, last)))
    return list(indices)


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}...")


def _locate(source: str | os.PathLike[str] | bytes, doc_id: str | None, reading: Mapping[str, Any]) -> PdfFile:
    """The file of a source, to be read with these fields of a :class:`PdfFile`."""
    if isinstance(source, bytes):
        file = PdfFile(doc_id or "PDF in memory", data=source, **reading)
        beginning = source[:BEGINNING]
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source).absolute()
        file = PdfFile(path.name or str(path), path=path, **reading)
        if is_folder(path):
            raise file.error("is a directory. Give one PDF file at a time, e.g. those of Path(...).glob('*.pdf').")
        if is_special(path):
            raise file.error("is not a plain file, but a pipe or a device. Write it into a file first.")
        file = dataclasses.replace(file, stamp=stamp_of(file))
        try:
            with path.open("rb") as stream:
                beginning = stream.read(BEGINNING)
        except OSError as error:
            raise file.error(f"can't be opened: {error.strerror}. Check its permissions.") from error
    else:
        raise TypeError(f"read_pdf takes a path or bytes, got {type(source).__name__}.")
    if not beginning:
        raise file.error("is empty (0 bytes). Download or save it again.")
    if not begins_a_pdf(beginning):
        raise file.error(_what_it_is(beginning, source))
    return file


def _what_it_is(beginning: bytes, source: str | os.PathLike[str] | bytes) -> str:
    try:
        with open_image(source if isinstance(source, bytes) else Path(source), "the file", PageError) as image:
            return f"is a {image.format} image, not a PDF. Give it as Page(image=...)."
    except PageError:
        return f"is not a PDF: it has no %PDF mark and begins with {beginning[:24]!r}. Expected a PDF file."


def _choose_pages(pages: Iterable[int] | str | None, total: int, file: PdfFile) -> list[int]:
    if pages is None:
        return list(range(total))
    if isinstance(pages, str):
        try:
            return parse_page_range(pages, total=total)
        except PageError as error:
            raise PageError(f"{file.name}: {error}", source=file.source) from error
    chosen = list(dict.fromkeys(pages))
    if not all(isinstance(index, int) for index in chosen):
        other = next(index for index in chosen if not isinstance(index, int))
        raise TypeError(f"pages takes whole numbers counted from 0, or a string like '1-3,7'; got {other!r}.")
    wrong = [index for index in chosen if not 0 <= index < total]
    if wrong or not chosen:
        shown = ", ".join(str(index) if abs(index) < 10**18 else "of over 18 digits" for index in wrong[:5])
        got = f"no page {shown}" if wrong else "nothing to read in an empty list of pages"
        raise file.error(
            f"has {total} pages: {got}. Expected indices from 0 to {total - 1} (a string like '1-3,7' counts from 1)."
        )
    return chosen


def pixel_size(size: tuple[float, float], max_pixels: int, dpi: float | None) -> tuple[int, int]:
    """Width and height in pixels for a page of ``size`` points."""
    zoom = (MAX_BUDGET_DPI if dpi is None else dpi) / 72
    budget = MAX_RENDERED_PIXELS if dpi is not None else min(max_pixels, MAX_RENDERED_PIXELS)
    if math.ceil(size[0] * zoom) * math.ceil(size[1] * zoom) > budget:
        zoom = min(zoom, math.sqrt(budget / (size[0] * size[1])))
    width, height = (max(1, math.floor(side * zoom + 1e-6)) for side in size)
    return width, height
