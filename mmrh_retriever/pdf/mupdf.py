"""MuPDF behind one lock: a few open documents, and its messages as errors.

MuPDF is not thread-safe, so whoever uses a page holds the lock (:func:`open_page`).
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pymupdf

from mmrh_retriever.errors import PageError, SettingsError
from mmrh_retriever.pdf.text import without_surrogates

MAX_OPEN_DOCUMENTS = 4
"""Documents kept open between two pages."""

MAX_PAGES = 1_000_000
"""Files that claim more pages are refused; no file that could be read has as many."""

_MUPDF_ERRORS = (pymupdf.mupdf.FzErrorBase, RuntimeError, ValueError, AssertionError, IndexError, TypeError)
_DAMAGE = re.compile(
    r"\b(syntax|format|library|limit|generic|system) error\b|zlib error|content stream|premature end|"
    r"truncated image|cannot (load|draw|decode|read|open|find)|invalid character|too many errors",
    re.IGNORECASE,
)
_HARMLESS = re.compile(r"\bicc\b|profile|font|annotation|outline|link|structure", re.IGNORECASE)
_SHOWN_MESSAGES = 20
_END_BYTES = 2048  # at the end of a file, where its end mark is looked for


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What a worker process may take.

    Args:
        seconds: for opening a file, for reading a page and for drawing it, each.
        memory: bytes of address space, libraries (about 0.6 GiB) included; held to where the system can (not on
            Windows and macOS).

    Raises:
        SettingsError: a limit that is not positive.
    """

    seconds: float = 30.0
    memory: int = 2 * 1024**3

    def __post_init__(self) -> None:
        for name in ("seconds", "memory"):
            if not 0 < getattr(self, name) < math.inf:
                raise SettingsError(f"{name} must be positive, got {getattr(self, name)}.")


@dataclass(frozen=True, eq=False)
class PdfFile:
    """Where a PDF's bytes are, and what the file looked like when its pages were read.

    ``stamp`` is the file's change time, size and inode; ``None`` for bytes. With ``limits`` a worker process reads it.
    """

    name: str
    path: Path | None = None
    data: bytes | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    strict: bool = True
    stamp: tuple[int, int, int] | None = None
    limits: WorkerLimits | None = None

    @property
    def source(self) -> str:
        """The file's path, or its name where it has none."""
        return str(self.path) if self.path is not None else self.name

    def error(self, problem: str, page: int | None = None) -> PageError:
        """An error that names this file (and the page, given by its 0-based index)."""
        where = self.name if page is None else f"Page {page + 1} of {self.name}"
        return PageError(f"{where} {problem}", source=self.source, page=page)


# Open documents

_LOCK = threading.RLock()
_OPEN: OrderedDict[int, tuple[weakref.ref[PdfFile], pymupdf.Document]] = OrderedDict()  # by the id of the PdfFile
_ABANDONED: list[object] = []


def _after_fork() -> None:
    # A child shares its parent's file positions: it must neither use nor close the parent's documents.
    global _LOCK, _OPEN
    _ABANDONED.append(_OPEN)
    _LOCK, _OPEN = threading.RLock(), OrderedDict()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def using_mupdf() -> contextlib.AbstractContextManager[object]:
    """The lock that whoever uses MuPDF holds."""
    return _LOCK


@contextlib.contextmanager
def open_document(file: PdfFile, page: int | None = None) -> Iterator[pymupdf.Document]:
    """The open document, with MuPDF to ourselves and its messages kept off the terminal; for ``page``, if given."""
    with _LOCK:
        tools = pymupdf.TOOLS
        shown = tools.mupdf_display_errors(), tools.mupdf_display_warnings()
        tools.mupdf_display_errors(False)
        tools.mupdf_display_warnings(False)
        try:
            document = _document(file, page)
            with _page_errors(file, "Download or save it again.", page):
                yield document
        finally:
            tools.store_shrink(90)  # to 26 MB; left alone it keeps 256 MB of pictures, even those of closed files
            tools.mupdf_display_errors(shown[0])
            tools.mupdf_display_warnings(shown[1])


@contextlib.contextmanager
def open_page(file: PdfFile, index: int) -> Iterator[tuple[pymupdf.Page, list[str]]]:
    """A page, and a list that holds MuPDF's messages about it once the context is left."""
    advice = "Repair the file (mutool clean, or print it to a new PDF), or leave the page out with pages=."
    messages: list[str] = []
    with open_document(file, index) as document:
        pymupdf.TOOLS.reset_mupdf_warnings()
        with _page_errors(file, advice, index):
            yield document.load_page(index), messages
        found = dict.fromkeys(without_surrogates(pymupdf.TOOLS.mupdf_warnings()).splitlines())
        lines = [line for line in found if not line.startswith("... repeated")]
        damage = [line for line in lines if means_damage(line)]
        if damage and file.strict:
            pymupdf.TOOLS.store_shrink(100)  # or what was decoded of a cut picture is shown again, without a message
    messages += lines[:_SHOWN_MESSAGES]
    if damage and file.strict:
        raise file.error(
            f"is damaged (MuPDF: {'; '.join(damage[:3])}). {advice} strict=False takes what can be read.", index
        )


@contextlib.contextmanager
def _page_errors(file: PdfFile, advice: str, page: int | None = None) -> Iterator[None]:
    try:
        yield
    except PageError:
        raise
    except _MUPDF_ERRORS as error:
        described = f"{type(error).__name__}: {error}".rstrip(".")
        raise file.error(f"can't be read as a PDF ({described}). {advice}", page) from error


def close_documents() -> None:
    """Close the few documents that are kept open. Pages stay usable: they open their file again."""
    with _LOCK:
        while _OPEN:
            _OPEN.popitem()[1][1].close()
        pymupdf.TOOLS.store_shrink(100)


def stamp_of(file: PdfFile, page: int | None = None) -> tuple[int, int, int] | None:
    """A file's change time, size and inode as they are now; ``None`` for bytes."""
    if file.path is None:
        return None
    try:
        status = file.path.stat()
    except (OSError, ValueError) as error:
        described = (getattr(error, "strerror", None) or str(error)).lower()
        problem = f"{file.path}: {described}. Check the path and its permissions."
        raise PageError(problem, source=file.source, page=page) from error
    return status.st_mtime_ns, status.st_size, status.st_ino


def _document(file: PdfFile, page: int | None) -> pymupdf.Document:
    if stamp_of(file, page) != file.stamp:
        raise file.error("has changed on disk since its pages were read. Read it again.", page)
    known, document = _OPEN.get(id(file), (None, None))
    if known is not None and known() is not file:  # of a file that is gone, and was not closed: ids are used again
        _OPEN.pop(id(file))[1].close()
        document = None
    if document is None:
        document = _opened(file)
        _OPEN[id(file)] = weakref.ref(file), document
        weakref.finalize(file, _forget, id(file)).atexit = False
        while len(_OPEN) > MAX_OPEN_DOCUMENTS:
            _OPEN.popitem(last=False)[1][1].close()
    _OPEN.move_to_end(id(file))
    return document


def _forget(key: int) -> None:
    """The last page of a file is gone: close the file, unless MuPDF is busy (then it is pushed out later)."""
    if _LOCK.acquire(blocking=False):
        try:
            if (known := _OPEN.pop(key, None)) is not None:
                known[1].close()
        finally:
            _LOCK.release()


def _opened(file: PdfFile) -> pymupdf.Document:
    pymupdf.TOOLS.reset_mupdf_warnings()
    with contextlib.ExitStack() as closing, _page_errors(file, "Download or save it again."):
        data = _data(file)
        document = pymupdf.open(filename=file.path if data is None else None, stream=data, filetype="pdf")
        closing.callback(document.close)
        _check_document(document, file)
        closing.pop_all()
    return document


def _data(file: PdfFile) -> bytes | None:
    """A file's bytes if they are given, or if MuPDF can't find it by its name, which is no text."""
    try:
        str(file.path).encode()
    except UnicodeEncodeError:
        return None if file.path is None else file.path.read_bytes()
    return file.data


def _check_document(document: pymupdf.Document, file: PdfFile) -> None:
    if document.needs_pass:
        if file.password is None:
            raise file.error("is encrypted. Give its password=.")
        if not document.authenticate(file.password):
            raise file.error("is encrypted, and the password does not open it. Expected its user or owner password.")
    if document.page_count < 1:
        raise file.error("has no pages. Expected at least one; save it again from its source.")
    if document.page_count > MAX_PAGES:
        raise file.error(f"claims {document.page_count:,} pages. Expected at most {MAX_PAGES:,}; save it again.")
    if file.strict and document.is_repaired and not _has_end_mark(file):
        raise file.error("is cut short: its end is missing. Download it again, or read the rest with strict=False.")


def _has_end_mark(file: PdfFile) -> bool:
    if file.data is not None:
        return b"%%EOF" in file.data[-_END_BYTES:]
    with Path(file.source).open("rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - _END_BYTES))
        return b"%%EOF" in stream.read()


def means_damage(message: str) -> bool:
    """Whether a message of MuPDF says that something of the page is missing."""
    return _DAMAGE.search(message) is not None and _HARMLESS.search(message) is None
