"""Pages out of what other programs' documents say of them: picture in memory, path, web address, PDF and page.

Such a document is data that anybody may have written. :class:`PageSource` holds how far it is trusted: no web
addresses unless asked for, files only below an allowed folder if there is one, bytes and pixels counted before
anything is decoded, and only formats that Pillow reads by itself.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from mmrh_retriever.adapters.clues import PageClues, decode_base64, is_data_uri, is_web_address
from mmrh_retriever.adapters.fetching import fetch
from mmrh_retriever.errors import PageError, SettingsError
from mmrh_retriever.images import MAX_IMAGE_PIXELS
from mmrh_retriever.pdf.reader import DEFAULT_MAX_PIXELS, iter_pdf, read_pdf
from mmrh_retriever.types import Page

DEFAULT_MAX_BYTES = 128 * 1024 * 1024
"""Files, web answers and pictures in memory with more bytes than this are refused."""
IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are opened; EPS and its like, which start another program, are not."""

_IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
_BEGINNING = 1024  # bytes of a file among which a PDF's mark stands


@dataclass(frozen=True, slots=True)
class PageSource:
    """How far documents are trusted, and how their pages are read.

    Args:
        allow_urls: fetch ``http`` and ``https`` addresses of public hosts (see ``fetching``).
        allowed_root: a folder; files outside it are refused, after symbolic links are followed. Any if ``None``.
        max_bytes: the longest file, answer or picture in memory that is taken.
        max_pixels: the largest picture that is decoded, at most 64 million pixels.
        pdf_pixels: the pixels that a page of a PDF is drawn with.
        url_timeout: seconds for a fetch, redirects included.

    Raises:
        SettingsError: a limit that is not positive, or more pixels than any page may have.
    """

    allow_urls: bool = False
    allowed_root: str | Path | None = None
    max_bytes: int = DEFAULT_MAX_BYTES
    max_pixels: int = MAX_IMAGE_PIXELS
    pdf_pixels: int = DEFAULT_MAX_PIXELS
    url_timeout: float = 20.0

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "pdf_pixels", "url_timeout"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.max_pixels > MAX_IMAGE_PIXELS:
            raise SettingsError(f"max_pixels is at most {MAX_IMAGE_PIXELS:,}, got {self.max_pixels:,}.")

    def page(self, clues: PageClues, *, layout: bool = False) -> Page:
        """The page that the clues lead to.

        Args:
            clues: what the document says.
            layout: find the regions of PDF pages (slower).

        Raises:
            PageError: nothing to score, or a picture that is refused or can't be read.
        """
        name = clues.doc_id or "The document"
        if clues.image is not None:
            return self._from_memory(clues.image, clues, layout=layout)
        if clues.image_path is not None:
            return self._from_file(clues.image_path, clues, layout=layout)
        if clues.file_path is not None:
            found = self._from_origin(clues.file_path, clues, layout=layout)
            if found is not None:
                return found
        if clues.image_url is not None and (self.allow_urls or is_data_uri(clues.image_url)):
            return self._from_url(clues.image_url, clues, layout=layout)
        if clues.text is not None and clues.text.strip():
            return Page(text=clues.text, doc_id=clues.doc_id, index=clues.index or 0)
        if clues.image_url is not None:
            raise PageError(
                f"{name} has an image address only ({clues.image_url}), and addresses are not fetched. Allow it with "
                "allow_urls=True if you trust the documents, or give the image itself.",
                source=clues.doc_id,
            )
        raise PageError(
            f"{name} has nothing to score: no image, no PDF with a page number, no text. Give it one of them.",
            source=clues.doc_id,
        )

    def path(self, given: str | Path) -> Path:
        """A regular file that may be read, its symbolic links followed.

        Raises:
            PageError: a web address, no such file, no plain file, outside ``allowed_root``, or too large.
        """
        name = str(given) if len(str(given)) <= 200 else f"{str(given)[:200]}..."
        if is_web_address(name):
            raise PageError(f"{name} is given as a path. Expected a path without a scheme.")
        try:
            found = Path(given).resolve(strict=True)
            inside = self.allowed_root is None or found.is_relative_to(Path(self.allowed_root).resolve(strict=True))
            plain, size = found.is_file(), found.stat().st_size
        except (OSError, ValueError, RuntimeError) as error:
            raise PageError(
                f"{name}: no such file, or it can't be opened ({type(error).__name__}). Check the path.", source=name
            ) from error
        if not inside:
            raise PageError(
                f"{name} is outside the allowed folder {self.allowed_root}. Move it there, or widen allowed_root.",
                source=name,
            )
        if not plain:
            raise PageError(f"{name} is not a plain file. Expected an image or a PDF file.", source=name)
        self._count_bytes(size, name)
        return found

    def _count_bytes(self, size: int, name: str) -> None:
        if size > self.max_bytes:
            raise PageError(
                f"{name} has {size:,} bytes; max_bytes allows {self.max_bytes:,}. Raise it, or give a smaller file.",
                source=name,
            )

    def _from_memory(self, image: Image.Image | bytes | str, clues: PageClues, *, layout: bool) -> Page:
        name = clues.doc_id or "the image in memory"
        if isinstance(image, str):
            self._count_bytes(len(image) * 3 // 4, name)
            image = decode_base64(image, name=name)
        if isinstance(image, bytes):
            self._count_bytes(len(image), name)
            if b"%PDF-" in image[:_BEGINNING]:
                return self._from_pdf(image, clues, layout=layout)
        elif not isinstance(image, Image.Image):
            raise PageError(
                f"The image of {name} is a {type(image).__name__}. Expected a PIL image, bytes or base64 text.",
                source=clues.doc_id,
            )
        return self._picture(image, clues)

    def _from_file(self, given: str | Path, clues: PageClues, *, layout: bool) -> Page:
        path = self.path(given)
        if b"%PDF-" in _beginning(path):
            return self._from_pdf(path, clues, layout=layout)
        return self._picture(path, clues)

    def _from_origin(self, given: str | Path, clues: PageClues, *, layout: bool) -> Page | None:
        """The page in the file that a document was read from; ``None`` if the file does not lead to one page."""
        suffix = Path(given).suffix.lower()
        if suffix in _IMAGE_SUFFIXES:
            return self._from_file(given, clues, layout=layout)
        has_text = clues.text is not None and bool(clues.text.strip())
        if suffix != ".pdf" or (clues.index is None and clues.label is None and has_text):
            return None
        return self._from_pdf(self.path(given), clues, layout=layout)

    def _from_url(self, url: str, clues: PageClues, *, layout: bool) -> Page:
        if is_data_uri(url):
            return self._from_memory(url, clues, layout=layout)
        body = fetch(url, max_bytes=self.max_bytes, timeout=self.url_timeout)
        return self._from_memory(body, clues, layout=layout)

    def _from_pdf(self, source: Path | bytes, clues: PageClues, *, layout: bool) -> Page:
        index = clues.index
        if index is None:
            index = _index_of_label(source, clues)
        (page,) = read_pdf(
            source,
            pages=[index],
            max_pixels=self.pdf_pixels,
            layout=layout,
            doc_id=clues.doc_id if isinstance(source, bytes) else None,
        )
        return page

    def _picture(self, image: Image.Image | bytes | Path, clues: PageClues) -> Page:
        """A page of an image. Its kind and size are checked before any pixel is decoded."""
        name = clues.doc_id or (image.name if isinstance(image, Path) else "The image")
        if isinstance(image, Image.Image):
            width, height = image.size
        else:
            width, height = _size_of(image, name)
        if width * height > self.max_pixels:
            raise PageError(
                f"{name} has {width} x {height} pixels; max_pixels allows {self.max_pixels:,}. Scale it down, or raise "
                "the limit.",
                source=clues.doc_id,
            )
        doc_id = clues.doc_id or (image.name if isinstance(image, Path) else None)
        return Page(image=image, text=clues.text or None, doc_id=doc_id, index=clues.index or 0)


def _index_of_label(source: Path | bytes, clues: PageClues) -> int:
    """The page with a printed label; the only page there is, without one."""
    name = clues.doc_id or (source.name if isinstance(source, Path) else "The PDF")
    total = int(next(iter_pdf(source)).metadata["total_pages"])
    if clues.label is None:
        if total == 1:
            return 0
        raise PageError(
            f"{name} has {total} pages, and the document does not say which one it is. Put the page's number into "
            "metadata['page'], or name its key with page_key=.",
            source=clues.doc_id,
        )
    if re.fullmatch(r"\d{1,9}", clues.label, re.ASCII) and 1 <= int(clues.label) <= total:
        # Most labels are plain numbers; a PDF without labels counts from 1.
        guess = int(clues.label) - 1
        (page,) = read_pdf(source, pages=[guess])
        if page.label in (None, clues.label):
            return guess
    labels = _labels(source, source.stat().st_mtime_ns) if isinstance(source, Path) else _read_labels(source)
    if clues.label in labels:
        return labels.index(clues.label)
    raise PageError(
        f"{name} has no page with the label {clues.label!r}. Put the page's number into metadata['page'].",
        source=clues.doc_id,
    )


def _read_labels(source: Path | bytes) -> tuple[str | None, ...]:
    return tuple(page.label for page in iter_pdf(source))


@lru_cache(maxsize=32)
def _labels(path: Path, stamp: int) -> tuple[str | None, ...]:
    """The printed labels of a PDF's pages; ``stamp`` is the file's change time, so that a new file is read anew."""
    del stamp
    return _read_labels(path)


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_BEGINNING)
    except OSError as error:
        raise PageError(f"{path} can't be opened ({error}). Check its permissions.", source=str(path)) from error


def _size_of(image: bytes | Path, name: str) -> tuple[int, int]:
    """Width and height of an image; no pixel is decoded."""
    Image.init()
    formats = [kind for kind in IMAGE_FORMATS if kind in Image.OPEN]  # a Pillow may be built without some
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image, formats=formats) as opened:
            return opened.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PageError(f"{name}: {error}. Scale it down.", source=name) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise PageError(
            f"{name} is not an image that can be read ({error}). Expected {', '.join(IMAGE_FORMATS)} or a PDF.",
            source=name,
        ) from error
