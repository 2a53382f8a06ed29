"""A PDF's bytes, where they are, and how they are to be read."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmrh_retriever.errors import PageError, SettingsError

BackendName = Literal["pymupdf", "pdfium"]
"""A library that reads and draws PDFs."""

MAX_PAGES = 1_000_000
"""Files that claim more pages are refused; no file that could be read has as many."""
BEGINNING = 1024
"""Bytes of a file in which its %PDF mark may stand."""
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
    """Where a PDF's bytes are, what reads them, and what the file looked like when its pages were read.

    ``stamp`` is the file's change time, size and inode; ``None`` for bytes. With ``limits`` a worker process reads it.
    """

    name: str
    path: Path | None = None
    data: bytes | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    strict: bool = True
    stamp: tuple[int, int, int] | None = None
    limits: WorkerLimits | None = None
    backend: BackendName = "pymupdf"

    @property
    def source(self) -> str:
        """The file's path, or its name where it has none."""
        return str(self.path) if self.path is not None else self.name

    def error(self, problem: str, page: int | None = None) -> PageError:
        """An error that names this file (and the page, given by its 0-based index)."""
        where = self.name if page is None else f"Page {page + 1} of {self.name}"
        return PageError(f"{where} {problem}", source=self.source, page=page)


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


def check_password(file: PdfFile, *, opened: bool) -> None:
    """Raise a :class:`PageError` for an encrypted file that its password, or none, has not ``opened``."""
    if opened:
        return
    if file.password is None:
        raise file.error("is encrypted. Give its password=.")
    raise file.error("is encrypted, and the password does not open it. Expected its user or owner password.")


def check_pages(file: PdfFile, count: int, *, rebuilt: bool) -> None:
    """Raise a :class:`PageError` for no or too many pages, and strictly for a ``rebuilt`` file without its end."""
    if count < 1:
        raise file.error("has no pages. Expected at least one; save it again from its source.")
    if count > MAX_PAGES:
        raise file.error(f"claims {count:,} pages. Expected at most {MAX_PAGES:,}; save it again.")
    if file.strict and rebuilt and not has_end_mark(file):
        raise file.error("is cut short: its end is missing. Download it again, or read the rest with strict=False.")


def begins_a_pdf(content: bytes) -> bool:
    """Whether the mark of a PDF stands near the beginning of a file's content."""
    return b"%PDF-" in content[:BEGINNING]


def has_end_mark(file: PdfFile) -> bool:
    """Whether the mark stands near a file's end that PDF demands there."""
    if file.data is not None:
        return b"%%EOF" in file.data[-_END_BYTES:]
    with Path(file.source).open("rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - _END_BYTES))
        return b"%%EOF" in stream.read()
