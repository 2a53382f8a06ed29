"""Pages out of what other programs' documents say of them: picture in memory, path, web address, PDF and page.

Such a document is data that anybody may have written. Web addresses are fetched only if asked for, files are read only
below an allowed folder if there is one, bytes and pixels are counted before anything is decoded, and only formats that
Pillow reads by itself are opened.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from cachetools import LRUCache
from PIL import Image, UnidentifiedImageError

from mmrh_retriever.adapters.clues import PageClues, decode_base64, is_data_uri, is_web_address
from mmrh_retriever.adapters.fetching import fetch
from mmrh_retriever.errors import PageError, SettingsError
from mmrh_retriever.images import IMAGE_FORMATS, MAX_IMAGE_PIXELS, image_formats
from mmrh_retriever.pdf.backends import PdfBackendName
from mmrh_retriever.pdf.pdf_file import BEGINNING, WorkerLimits, begins_a_pdf
from mmrh_retriever.pdf.reader import DEFAULT_MAX_PIXELS, iter_pdf, read_pdf
from mmrh_retriever.types import Page

DEFAULT_MAX_BYTES = 128 * 1024 * 1024
"""Files, web answers and pictures in memory with more bytes than this are refused."""

_IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
Reading = Mapping[str, Any]
"""How files are read: the arguments of ``read_pdf`` that a source decides."""


@dataclass(frozen=True, slots=True)
class PageSource:
    """How far documents are trusted, and how their pages are read.

    Args:
        allow_urls: fetch ``http`` and ``https`` addresses of public hosts.
        allowed_root: a folder; files outside it are refused, after symbolic links are followed. Any if ``None``.
        max_bytes: the longest file, answer or picture in memory.
        max_pixels: the largest picture, at most 64 million.
        pdf_pixels: what a page of a PDF is drawn with.
        url_timeout: seconds for a fetch, redirects included.
        isolate: read and draw PDFs in a worker process with limits of time and memory, see
            :func:`~mmrh_retriever.read_pdf`.
        pdf_backend: what reads and draws PDFs, as there.

    Raises:
        SettingsError: a limit that is not positive, or more pixels than any page may have.
    """

    allow_urls: bool = False
    allowed_root: str | Path | None = None
    max_bytes: int = DEFAULT_MAX_BYTES
    max_pixels: int = MAX_IMAGE_PIXELS
    pdf_pixels: int = DEFAULT_MAX_PIXELS
    url_timeout: float = 20.0
    isolate: bool | WorkerLimits = False
    pdf_backend: PdfBackendName = "auto"
    _fetched: LRUCache[str, bytes] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "pdf_pixels", "url_timeout"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.max_pixels > MAX_IMAGE_PIXELS:
            raise SettingsError(f"max_pixels is at most {MAX_IMAGE_PIXELS:,}, got {self.max_pixels:,}.")
        object.__setattr__(self, "_fetched", LRUCache(self.max_bytes, getsizeof=len))  # a PDF has many pages

    def page(self, clues: PageClues, *, layout: bool = False) -> Page:
        """The page that the clues lead to; with the regions of a PDF's page if ``layout`` is set (slower).

        Raises:
            PageError: nothing to score, or a picture that is refused or can't be read.
        """
        found = self._picture(clues)
        if found is None:
            return self._text_page(clues)
        if not isinstance(found, Image.Image) and _is_pdf(found, by_name=clues.image_path is None):
            return self._pdf_page(found, clues, layout=layout)
        file = found.name if isinstance(found, Path) else None
        name = clues.doc_id or file or "The image"
        width, height = found.size if isinstance(found, Image.Image) else _size_of(found, name)
        if width * height > self.max_pixels:
            allowed = f"max_pixels allows {self.max_pixels:,}. Scale it down, or raise the limit."
            raise PageError(f"{name} has {width} x {height} pixels; {allowed}", source=clues.doc_id)
        return Page(image=found, text=clues.text or None, doc_id=clues.doc_id or file, index=clues.index or 0)

    def path(self, given: str | Path) -> Path:
        """A regular file that may be read, its symbolic links followed.

        Raises:
            PageError: no text, a web address, no such file, no plain file, outside ``allowed_root``, or too large.
        """
        if not isinstance(given, (str, Path)):
            raise PageError(f"The path is a {type(given).__name__}. Expected text or a Path.")
        name = str(given)[:200] + "..." * (len(str(given)) > 200)
        if is_web_address(name):
            raise PageError(f"{name} is given as a path. Expected a path without a scheme.")
        try:
            found = Path(given).resolve(strict=True)
            inside = self.allowed_root is None or found.is_relative_to(Path(self.allowed_root).resolve(strict=True))
            plain, size = found.is_file(), found.stat().st_size
        except (OSError, ValueError, RuntimeError) as error:
            problem = f"{name}: no such file, or it can't be opened ({type(error).__name__}). Check the path."
            raise PageError(problem, source=name) from error
        if not inside:
            problem = f"{name} is outside the allowed folder {self.allowed_root}. Move it there, or widen allowed_root."
            raise PageError(problem, source=name)
        if not plain:
            raise PageError(f"{name} is not a plain file. Expected an image or a PDF file.", source=name)
        self._count_bytes(size, name)
        return found

    def _count_bytes(self, size: int, name: str) -> None:
        if size > self.max_bytes:
            allowed = f"max_bytes allows {self.max_bytes:,}. Raise it, or give a smaller file."
            raise PageError(f"{name} has {size:,} bytes; {allowed}", source=name)

    def _picture(self, clues: PageClues) -> Image.Image | bytes | Path | None:
        """The image or PDF file that the clues lead to, its bytes counted; ``None`` if they lead to none."""
        url = clues.image_url
        if clues.image is not None:
            return self._in_memory(clues.image, clues)
        if clues.image_path is not None:
            return self.path(clues.image_path)
        if (file := self._origin(clues)) is not None:
            return file
        if url is not None and is_data_uri(url):
            return self._in_memory(url, clues)
        if url is not None and self.allow_urls:
            return fetch(url, max_bytes=self.max_bytes, timeout=self.url_timeout)
        return None

    def _origin(self, clues: PageClues) -> Path | bytes | None:
        """The image or PDF that a document was read from, if this leads to its page."""
        numbered = clues.index is not None or clues.label is not None
        if clues.file_path is not None:
            if Path(clues.file_path).suffix.lower() in _IMAGE_SUFFIXES:
                return self.path(clues.file_path)
            leads = clues.of_pdf and (numbered or not clues.has_text or self._has_one_page(clues.file_path))
            return self.path(clues.file_path) if leads else None
        if not clues.of_pdf or not (numbered or not clues.has_text):
            return None
        if clues.file_url is not None:
            fetched = self.allow_urls and clues.file_url.lower().startswith(("http://", "https://"))
            return self._fetch_once(clues.file_url) if fetched else None
        named = Path(self.allowed_root or "", clues.file_name or "")
        return self.path(named) if _exists(named) else None

    def _has_one_page(self, file: str | Path) -> bool:
        return _exists(file) and _total(self.path(file), {"backend": self.pdf_backend}) == 1

    def _fetch_once(self, url: str) -> bytes:
        found: bytes | None = self._fetched.get(url)
        if found is None:
            found = fetch(url, max_bytes=self.max_bytes, timeout=self.url_timeout)
            self._fetched[url] = found
        return found

    def why_no_page(self, clues: PageClues) -> str:
        """Why no picture was found of the page that a document names, and what to do."""
        name, advice = clues.file, "Put the page's number into metadata['page'], or name its key with page_key=."
        if name is None:
            problem = "A document says its page, or how many pages its file has, but not which file"
            return f"{problem}. Put the path into metadata['file_path']."
        if clues.index is None and clues.label is None:
            return f"{name} is a PDF, and a document from it does not say its page. {advice}"
        if clues.file_path is None and clues.file_url is not None:
            allow = (
                "Allow it with allow_urls=True if you trust the documents, or put a path into metadata['file_path']."
            )
            return f"{name} is a web address of a PDF, which is not fetched. {allow}"
        where = f"the allowed folder {self.allowed_root}" if self.allowed_root else "the current folder"
        return f"{name} is a file's name without a folder, and not in {where}. Put the path into metadata['file_path']."

    def _in_memory(self, image: Image.Image | bytes | str, clues: PageClues) -> Image.Image | bytes:
        name = clues.doc_id or "the image in memory"
        if isinstance(image, str):
            self._count_bytes(len(image) * 3 // 4, name)
            image = decode_base64(image, name=name)
        if isinstance(image, bytes):
            self._count_bytes(len(image), name)
        elif not isinstance(image, Image.Image):
            problem = f"The image of {name} is a {type(image).__name__}. Expected a PIL image, bytes or base64 text."
            raise PageError(problem, source=clues.doc_id)
        return image

    def _text_page(self, clues: PageClues) -> Page:
        if clues.has_text:
            return Page(text=clues.text, doc_id=clues.doc_id, index=clues.index or 0)
        problem = "has nothing to score: no image, no PDF with a page number, no text. Give it one of them."
        if clues.image_url is not None:
            problem = (
                f"has an image address only ({clues.image_url}), and addresses are not fetched. Allow it with "
                "allow_urls=True if you trust the documents, or give the image itself."
            )
        raise PageError(f"{clues.doc_id or 'The document'} {problem}", source=clues.doc_id)

    def _pdf_page(self, source: Path | bytes, clues: PageClues, *, layout: bool) -> Page:
        reading: Reading = {"isolate": self.isolate, "backend": self.pdf_backend}
        index = _index_of_label(source, clues, reading) if clues.index is None else clues.index
        doc_id = clues.doc_id if isinstance(source, bytes) else None
        (page,) = read_pdf(source, pages=[index], max_pixels=self.pdf_pixels, layout=layout, doc_id=doc_id, **reading)
        if clues.file_url is not None and self._fetched.get(clues.file_url) is source:
            return replace(page, metadata={**page.metadata, "url": clues.file_url})
        return page


def _exists(file: str | Path) -> bool:
    try:
        return Path(file).is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _is_pdf(source: Path | bytes, *, by_name: bool) -> bool:
    """Whether a file is a PDF by a mark near its beginning, or by its name if this counts."""
    if isinstance(source, bytes):
        return begins_a_pdf(source)
    try:
        with source.open("rb") as stream:
            return (by_name and source.suffix.lower() == ".pdf") or begins_a_pdf(stream.read(BEGINNING))
    except OSError as error:
        raise PageError(f"{source} can't be opened ({error}). Check its permissions.", source=str(source)) from error


def _total(source: Path | bytes, reading: Reading) -> int:
    return int(next(iter_pdf(source, **reading)).metadata["total_pages"])


def _index_of_label(source: Path | bytes, clues: PageClues, reading: Reading) -> int:
    """The page with a printed label; the only page there is, without one."""
    label, total = clues.label, _total(source, reading)
    if label is None and total == 1:
        return 0
    problem = f"has {total} pages, and the document does not say which one it is"
    if label is not None:
        if re.fullmatch(r"\d{1,9}", label, re.ASCII) and 1 <= int(label) <= total:
            # Most labels are plain numbers; a PDF without labels counts from 1.
            (page,) = read_pdf(source, pages=[int(label) - 1], **reading)
            if page.label in (None, label):
                return page.index
        if isinstance(source, Path):
            labels = _labels(source, _changed(source), **reading)
        else:
            labels = _read_labels(source, reading)
        if label in labels:
            return labels.index(label)
        problem = f"has no page with the label {label!r}"
    name = clues.doc_id or (source.name if isinstance(source, Path) else "The PDF")
    advice = "Put the page's number into metadata['page'], or name its key with page_key=."
    raise PageError(f"{name} {problem}. {advice}", source=clues.doc_id)


def _changed(path: Path) -> int:
    """When a file was last changed, in nanoseconds."""
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise PageError(f"{path} is gone ({error}). Check the path.", source=str(path)) from error


def _read_labels(source: Path | bytes, reading: Reading) -> tuple[str | None, ...]:
    return tuple(page.label for page in iter_pdf(source, **reading))


@lru_cache(maxsize=32)
def _labels(path: Path, stamp: int, **reading: Any) -> tuple[str | None, ...]:
    """The printed labels of a PDF's pages; ``stamp`` is the file's change time, so that a new file is read anew."""
    del stamp
    return _read_labels(path, reading)


def _size_of(image: bytes | Path, name: str) -> tuple[int, int]:
    """Width and height of an image; no pixel is decoded."""
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image, formats=image_formats()) as opened:
            return opened.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PageError(f"{name}: {error}. Scale it down.", source=name) from error
    except Exception as error:  # Pillow's readers raise what they happen to run into
        described = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        problem = (
            f"{name} is not an image that can be read ({described}). Expected {', '.join(IMAGE_FORMATS)} or a PDF."
        )
        raise PageError(problem, source=name) from error
