"""PDF files as pages: text at once, pixels when asked for, and never more than one page of them.

Reading a file opens it, takes every page's text, size and label, and gives pages whose images are
:class:`PdfPageImage` objects: small descriptions that draw the page when they are asked to. MuPDF, which does
the work, is not thread-safe, so one lock stands around it; a few documents stay open behind that lock.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import math
import os
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pymupdf
from PIL import Image

from mmrh_retriever.errors import PageError
from mmrh_retriever.images import MAX_ASPECT_RATIO
from mmrh_retriever.pdf.layout import layout_regions
from mmrh_retriever.pdf.text import page_text, text_blocks
from mmrh_retriever.types import Page

logger = logging.getLogger(__name__)

DEFAULT_MAX_PIXELS = 2_000_000
"""A page's pixel budget unless told otherwise: about 147 dpi for a Letter page."""
MAX_RENDERED_PIXELS = 20_000_000
"""No page is drawn with more pixels than this, whatever is asked for (60 MB)."""
MAX_BUDGET_DPI = 300.0
"""Small pages are not blown up past this resolution to fill their budget; ``dpi=`` may go further."""
MIN_PAGE_POINTS = 4.0
"""Pages narrower or lower than this, in points, have no room for anything to read and are refused."""
MAX_OPEN_DOCUMENTS = 4
"""Documents kept open between two pages."""

_MUPDF_ERRORS = (pymupdf.mupdf.FzErrorBase, RuntimeError, ValueError, AssertionError, IndexError, TypeError)
_DAMAGE = re.compile(
    r"\b(syntax|format|library|limit|generic|system) error\b|zlib error|content stream|premature end|"
    r"cannot (load|draw|decode|read|open|find)|invalid character|too many errors",
    re.IGNORECASE,
)
_HARMLESS = re.compile(r"\bicc\b|profile|font|annotation|outline|link|structure", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class PdfFile:
    """Where a PDF's bytes are, and what the file looked like when its pages were read.

    ``stamp`` is the file's change time, size and inode; ``None`` for bytes.
    """

    name: str
    path: Path | None = None
    data: bytes | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    strict: bool = True
    stamp: tuple[int, int, int] | None = None

    @property
    def source(self) -> str:
        """The file's path, or its name where it has none."""
        return str(self.path) if self.path is not None else self.name

    def error(self, problem: str, page: int | None = None) -> PageError:
        """An error that names this file (and the 0-based page)."""
        where = self.name if page is None else f"Page {page + 1} of {self.name}"
        return PageError(f"{where} {problem}", source=self.source, page=page)


@dataclass(frozen=True, slots=True, eq=False)
class PdfPageImage:
    """A page of a PDF that is drawn when asked for: an :class:`~mmrh_retriever.types.ImageSource`.

    ``index`` counts from 0; ``width`` and ``height`` are in pixels.
    """

    file: PdfFile
    index: int
    width: int
    height: int

    def load(self) -> Image.Image:
        """Draw the page: an RGB image of ``width`` x ``height`` pixels, which nothing here keeps.

        Raises:
            PageError: the file has gone or has changed since its pages were read, or the page is damaged.
        """
        with _mupdf(self.file, self.index) as document, _page_errors(self.file, self.index) as warnings:
            page = document.load_page(self.index)
            zoom = pymupdf.Matrix(self.width / page.rect.width, self.height / page.rect.height)
            drawn = page.get_pixmap(matrix=zoom, colorspace=pymupdf.csRGB, alpha=False)
            image = Image.frombytes("RGB", (drawn.width, drawn.height), drawn.samples)
        for warning in warnings:
            level = logging.WARNING if _means_damage(warning) else logging.DEBUG
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
) -> list[Page]:
    """Read a PDF's pages: their text now, their images when they are needed.

    Args:
        source: A path, or the bytes of a PDF.
        pages: Which pages, each once, in the order first named: 0-based indices as an iterable of ``int``, or
            a string as people write it, counting from 1: ``"1-3,7"``, ``"12-"`` to the end. All by default.
        password: For encrypted files.
        max_pixels: The pixel budget of a page: its image has at most this many pixels, and close to it, but
            never more than 300 dpi.
        dpi: Draw at this resolution instead. Over ``MAX_RENDERED_PIXELS`` it is lowered.
        layout: Find text blocks, titles, tables, images and figures, and give them as ``Page.regions``.
        doc_id: The pages' ``doc_id``; the file's name by default, ``None`` for bytes.
        strict: Raise for damaged pages and for files cut short. Otherwise take what can be read; MuPDF's
            messages then stand in ``metadata["warnings"]`` and, for damage met while drawing, in the log.

    Returns:
        The pages. ``text`` is the text layer in reading order or ``None``, ``label`` the printed page label,
        ``size`` the width and height in points as displayed (rotated, cropped). ``metadata`` is ready for
        JSON: ``path`` (absolute, for files), ``total_pages``, ``rotation`` in degrees, and, where there are
        any, ``title`` and ``warnings``.

    Raises:
        PageError: missing, empty, encrypted, truncated or damaged file; not a PDF; no such page; a page too
            small or too long to read.
        ValueError: ``max_pixels`` or ``dpi`` is not positive.
        TypeError: ``source`` or ``pages`` is of another type.
    """
    return list(
        iter_pdf(
            source,
            pages=pages,
            password=password,
            max_pixels=max_pixels,
            dpi=dpi,
            layout=layout,
            doc_id=doc_id,
            strict=strict,
        )
    )


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
) -> Iterator[Page]:
    """Read a PDF page by page: :func:`read_pdf` as a stream.

    The file and ``pages`` are checked at once, each page when it is taken.
    """
    if max_pixels < 1:
        raise ValueError(f"max_pixels must be at least 1, got {max_pixels}.")
    if dpi is not None and not (dpi > 0 and math.isfinite(dpi)):
        raise ValueError(f"dpi must be a positive number, got {dpi}.")
    file = _locate(source, password, doc_id, strict)
    with _mupdf(file) as document:
        total = document.page_count
        title = (document.metadata or {}).get("title") or None
    chosen = _choose_pages(pages, total, file)
    if doc_id is None and file.path is not None:
        doc_id = file.path.name
    shared: dict[str, Any] = {"path": str(file.path)} if file.path is not None else {}
    shared["total_pages"] = total
    if title:
        shared["title"] = title

    def stream() -> Iterator[Page]:
        for index in chosen:
            yield _read_page(file, index, max_pixels, dpi, layout, doc_id, shared)

    return stream()


def parse_page_range(text: str, *, total: int) -> list[int]:
    """0-based indices for a page range as people write it, ``"1-3,7"`` or ``"12-"``, each page once.

    Raises:
        PageError: malformed, or beyond the ``total`` pages of the document.
    """
    indices: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:(-)\s*(\d+)?)?\s*", part, re.ASCII)
        problem = None
        if match is None:
            problem = "is not a page range"
        else:
            first = int(match[1])
            last = int(match[3]) if match[3] else total if match[2] else first
            if first < 1 or max(first, last) > total:
                problem = f"names a page that is not there: there are {total}, counted from 1"
            elif last < first:
                problem = "runs backwards"
        if problem:
            raise PageError(
                f"pages={text!r} {problem}. Expected numbers and ranges between 1 and {total}, such as '1-3,7'."
            )
        indices.update(dict.fromkeys(range(first - 1, last)))
    return list(indices)


def close_documents() -> None:
    """Close the few documents that are kept open. Pages stay usable: they open their file again."""
    with _LOCK:
        while _OPEN:
            _OPEN.popitem()[1].close()
        pymupdf.TOOLS.store_shrink(100)


# Files


def _locate(source: str | os.PathLike[str] | bytes, password: str | None, doc_id: str | None, strict: bool) -> PdfFile:
    if isinstance(source, bytes):
        file = PdfFile(doc_id or "PDF in memory", data=source, password=password, strict=strict)
        head = source[:1024]
        size = len(source)
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source).absolute()
        unread = PdfFile(path.name or str(path), path=path)
        if path.is_dir():
            raise unread.error("is a directory. Give one PDF file at a time, e.g. those of Path(...).glob('*.pdf').")
        stamp = _stamp(unread)
        file = PdfFile(path.name, path=path, password=password, strict=strict, stamp=stamp)
        try:
            with path.open("rb") as stream:
                head = stream.read(1024)
        except OSError as error:
            raise file.error(f"can't be opened: {error.strerror}. Check its permissions.") from error
        size = stamp[1]
    else:
        raise TypeError(f"read_pdf takes a path or bytes, got {type(source).__name__}.")
    if size == 0:
        raise file.error("is empty (0 bytes). Download or save it again.")
    if b"%PDF-" not in head:  # the mark may stand anywhere in the first kilobyte
        raise file.error(_what_it_is(head, source))
    return file


def _stamp(file: PdfFile, page: int | None = None) -> tuple[int, int, int]:
    if file.path is None:
        raise TypeError("Only files on disk have a stamp.")
    try:
        status = file.path.stat()
    except FileNotFoundError as error:
        raise PageError(f"{file.path}: no such file. Check the path.", source=file.source, page=page) from error
    except OSError as error:
        raise file.error(f"can't be opened: {error.strerror}. Check its permissions.", page) from error
    return status.st_mtime_ns, status.st_size, status.st_ino


def _what_it_is(head: bytes, source: str | os.PathLike[str] | bytes) -> str:
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else Path(source)) as image:
            kind = image.format
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return f"is not a PDF: it has no %PDF mark and begins with {head[:24]!r}. Expected a PDF file."
    return f"is a {kind} image, not a PDF. Give it as Page(image=...)."


def _choose_pages(pages: Iterable[int] | str | None, total: int, file: PdfFile) -> list[int]:
    if pages is None:
        return list(range(total))
    if isinstance(pages, str):
        try:
            return parse_page_range(pages, total=total)
        except PageError as error:
            raise PageError(f"{file.name}: {error}", source=file.source) from error
    chosen = list(dict.fromkeys(pages))
    for index in chosen:
        if not isinstance(index, int):
            raise TypeError(f"pages takes whole numbers counted from 0, or a string like '1-3,7'; got {index!r}.")
    wrong = [index for index in chosen if not 0 <= index < total]
    if wrong or not chosen:
        got = f"no page {', '.join(map(str, wrong[:5]))}" if wrong else "nothing to read in an empty list of pages"
        raise PageError(
            f"{file.name} has {total} pages: {got}. Expected indices from 0 to {total - 1} "
            "(a string such as '1-3,7' counts from 1).",
            source=file.source,
        )
    return chosen


# MuPDF, behind one lock

_LOCK = threading.RLock()
_OPEN: OrderedDict[int, pymupdf.Document] = OrderedDict()  # id of a living PdfFile -> its document
_ABANDONED: list[object] = []


def _after_fork() -> None:
    # A child shares its parent's file positions: it must neither use nor close the parent's documents.
    global _LOCK, _OPEN
    _ABANDONED.append(_OPEN)
    _LOCK, _OPEN = threading.RLock(), OrderedDict()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def _mupdf(file: PdfFile, page: int | None = None) -> Iterator[pymupdf.Document]:
    """The open document, with MuPDF to ourselves and its messages kept off the terminal."""
    with _LOCK:
        tools = pymupdf.TOOLS
        shown = tools.mupdf_display_errors(), tools.mupdf_display_warnings()
        tools.mupdf_display_errors(False)
        tools.mupdf_display_warnings(False)
        try:
            yield _document(file, page)
        finally:
            tools.store_shrink(90)  # to 26 MB; left alone it keeps 256 MB of pictures, even those of closed files
            tools.mupdf_display_errors(shown[0])
            tools.mupdf_display_warnings(shown[1])


def _document(file: PdfFile, page: int | None) -> pymupdf.Document:
    if file.path is not None and _stamp(file, page) != file.stamp:
        raise PageError(
            f"{file.path} has changed on disk since its pages were read. Read it again.",
            source=file.source,
            page=page,
        )
    document = _OPEN.get(id(file))
    if document is None:
        document = _open_document(file)
        _OPEN[id(file)] = document
        weakref.finalize(file, _forget, id(file)).atexit = False
        while len(_OPEN) > MAX_OPEN_DOCUMENTS:
            _OPEN.popitem(last=False)[1].close()
    _OPEN.move_to_end(id(file))
    return document


def _forget(key: int) -> None:
    """The last page of a file is gone: close it, unless MuPDF is busy (then it is pushed out later)."""
    if _LOCK.acquire(blocking=False):
        try:
            document = _OPEN.pop(key, None)
            if document is not None:
                document.close()
        finally:
            _LOCK.release()


def _open_document(file: PdfFile) -> pymupdf.Document:
    pymupdf.TOOLS.reset_mupdf_warnings()
    try:
        document = pymupdf.open(filename=file.path, stream=file.data, filetype="pdf")
    except _MUPDF_ERRORS as error:
        raise file.error(f"can't be read as a PDF ({_told(error)}). Download or save it again.") from error
    try:
        _check_document(document, file)
    except PageError:
        document.close()
        raise
    return document


def _check_document(document: pymupdf.Document, file: PdfFile) -> None:
    try:
        if document.needs_pass:
            if file.password is None:
                raise file.error("is encrypted. Give its password: read_pdf(..., password=...).")
            if not document.authenticate(file.password):
                raise file.error(
                    "is encrypted, and the password given does not open it. Expected its user or owner password."
                )
        count = document.page_count
    except _MUPDF_ERRORS as error:
        if isinstance(error, PageError):
            raise
        raise file.error(f"can't be read as a PDF ({_told(error)}). Download or save it again.") from error
    if count < 1:
        raise file.error("has no pages. Expected at least one; save it again from its source.")
    if file.strict and document.is_repaired and not _has_end_mark(file):
        raise file.error(
            "is cut short: its end is missing. Download it again, or read what is there with strict=False."
        )


def _has_end_mark(file: PdfFile) -> bool:
    if file.data is not None:
        return b"%%EOF" in file.data[-2048:]
    with Path(file.source).open("rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - 2048))
        return b"%%EOF" in stream.read()


@contextlib.contextmanager
def _page_errors(file: PdfFile, index: int) -> Iterator[list[str]]:
    """Turn what MuPDF says about a page into an error, or into the list of messages that is given."""
    told: list[str] = []
    pymupdf.TOOLS.reset_mupdf_warnings()
    advice = "Repair the file (mutool clean, or print it to a new PDF), or leave the page out with pages=."
    try:
        yield told
    except _MUPDF_ERRORS as error:
        if isinstance(error, PageError):
            raise
        raise file.error(f"can't be read ({_told(error)}). {advice}", index) from error
    lines = dict.fromkeys(
        line for line in pymupdf.TOOLS.mupdf_warnings().splitlines() if not line.startswith("... repeated")
    )
    told.extend(itertools.islice(lines, 20))
    damage = [line for line in lines if _means_damage(line)]
    if damage and file.strict:
        raise file.error(
            f"is damaged (MuPDF: {'; '.join(damage[:3])}). {advice} strict=False takes what can be read.", index
        )


def _means_damage(message: str) -> bool:
    return _DAMAGE.search(message) is not None and _HARMLESS.search(message) is None


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(".")


# Pages


def _read_page(
    file: PdfFile,
    index: int,
    max_pixels: int,
    dpi: float | None,
    layout: bool,
    doc_id: str | None,
    shared: dict[str, Any],
) -> Page:
    with _mupdf(file, index) as document, _page_errors(file, index) as warnings:
        page = document.load_page(index)
        size = (float(page.rect.width), float(page.rect.height))
        _check_size(size, file, index)
        blocks = text_blocks(page)
        label = page.get_label() or None
        rotation = int(page.rotation)
        regions = layout_regions(page, blocks) if layout else ()
    metadata = {**shared, "rotation": rotation}
    if warnings:
        metadata["warnings"] = warnings
    width, height = _pixel_size(size, max_pixels, dpi)
    return Page(
        image=PdfPageImage(file, index, width, height),
        text=page_text(blocks) or None,
        doc_id=doc_id,
        index=index,
        size=size,
        label=label,
        regions=regions,
        metadata=metadata,
    )


def _check_size(size: tuple[float, float], file: PdfFile, index: int) -> None:
    got = f"is {size[0]:g} x {size[1]:g} pt"
    if min(size) < MIN_PAGE_POINTS:
        raise file.error(
            f"{got}: no room for anything to read. Expected at least {MIN_PAGE_POINTS:g} pt a side; leave the "
            "page out with pages=.",
            index,
        )
    if max(size) > MAX_ASPECT_RATIO * min(size):
        raise file.error(
            f"{got}: too long a strip to read. Expected at most {MAX_ASPECT_RATIO:g} to 1; cut it into pages, or "
            "leave it out with pages=.",
            index,
        )


def _pixel_size(size: tuple[float, float], max_pixels: int, dpi: float | None) -> tuple[int, int]:
    """Width and height in pixels for a page of ``size`` points."""
    wanted = dpi if dpi is not None else MAX_BUDGET_DPI
    budget = MAX_RENDERED_PIXELS if dpi is not None else min(max_pixels, MAX_RENDERED_PIXELS)
    zoom = wanted / 72
    if math.ceil(size[0] * zoom) * math.ceil(size[1] * zoom) > budget:
        zoom = min(zoom, math.sqrt(budget / (size[0] * size[1])))
    width, height = (max(1, math.floor(side * zoom + 1e-6)) for side in size)
    return width, height
