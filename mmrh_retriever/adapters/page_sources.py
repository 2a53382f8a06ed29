"""Pages out of what other programs' documents say of them: picture in memory, path, web address, PDF and page.

Such a document is data that anybody may have written. :class:`PageSource` holds how far it is trusted: no web
addresses unless asked for, files only below an allowed folder if there is one, bytes and pixels counted before
anything is decoded, and only formats that Pillow reads by itself.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from mmrh_retriever.adapters.fetching import fetch
from mmrh_retriever.errors import PageError
from mmrh_retriever.images import MAX_IMAGE_PIXELS
from mmrh_retriever.pdf.reader import DEFAULT_MAX_PIXELS, iter_pdf, read_pdf
from mmrh_retriever.types import Page

DEFAULT_MAX_BYTES = 128 * 1024 * 1024
"""Files, web answers and pictures in memory with more bytes than this are refused."""
IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are opened; EPS and its like, which start another program, are not."""

_IMAGE_HEADS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*", b"%PDF-")
_IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_DATA_URI = re.compile(r"data:(?P<kind>[\w.+/-]*)(?P<options>(?:;[\w=.+-]+)*),", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PageClues:
    """What a document says of the page it stands for. Whatever is unknown stays ``None``.

    The first that is there wins: ``image``, ``image_path``, ``file_path``, ``image_url``, ``text``.

    Attributes:
        image: a PIL image, the bytes of an image or PDF file, the same in base64, or a ``data:`` URI.
        image_path: an image file (or a PDF file, with ``index`` or ``label``).
        file_path: the file that the document was read from. A PDF counts together with ``index`` or ``label``
            (or if it has one page), an image by itself, anything else not at all.
        image_url: the web address of an image.
        index: the page of a PDF, counted from 0.
        label: the page's printed label, where the index is not known.
        text: the page's text; scored where there is no picture.
        doc_id: how errors and results call the document.
    """

    image: Image.Image | bytes | str | None = None
    image_path: str | Path | None = None
    file_path: str | Path | None = None
    image_url: str | None = None
    index: int | None = None
    label: str | None = None
    text: str | None = None
    doc_id: str | None = None


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
        ValueError: a limit that is not positive, or more pixels than any page may have.
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
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.max_pixels > MAX_IMAGE_PIXELS:
            raise ValueError(f"max_pixels is at most {MAX_IMAGE_PIXELS:,}, got {self.max_pixels:,}.")

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
                "allow_urls=True if you trust where the documents come from, or give the image itself.",
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
        if _URL.match(name):
            raise PageError(f"{name} stands where a path is expected. Give a path without a scheme.")
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
                f"{name} lies outside the allowed folder {self.allowed_root}. Move it there, or widen allowed_root.",
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
            if _is_pdf(image[:1024]):
                return self._from_pdf(image, clues, layout=layout)
        elif not isinstance(image, Image.Image):
            raise PageError(
                f"The image of {name} is a {type(image).__name__}. Expected a PIL image, bytes or base64 text.",
                source=clues.doc_id,
            )
        return self._picture(image, clues)

    def _from_file(self, given: str | Path, clues: PageClues, *, layout: bool) -> Page:
        path = self.path(given)
        if _is_pdf(_first_bytes(path)):
            return self._from_pdf(path, clues, layout=layout)
        return self._picture(path, clues)

    def _from_origin(self, given: str | Path, clues: PageClues, *, layout: bool) -> Page | None:
        """The page in the file that a document was read from; ``None`` if it was not one of a page's."""
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
        """A page of an image whose kind and size are looked at before any pixel is decoded."""
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


def clues_from_metadata(
    metadata: Mapping[str, Any],
    *,
    text: str | None = None,
    doc_id: str | None = None,
    page_base: int = 0,
    page_key: str | None = None,
) -> PageClues:
    """Clues from the metadata that loaders of LangChain and LlamaIndex write.

    ``image`` and ``image_base64`` hold a picture (``image`` may also be a path or a web address), ``image_path``
    and ``image_url`` say where one is, ``file_path`` and ``source`` name the file that was read. The page is
    ``page``; a numeric ``source`` beside a ``file_path`` (then always counted from 1); or the printed
    ``page_label``.

    Args:
        metadata: the document's metadata; not changed.
        text: the document's text.
        doc_id: how to call the document.
        page_base: what the first page's number is, 0 or 1.
        page_key: another key that holds the page's number; then only this one counts.

    Raises:
        PageError: a page number that is not a number, or lies before the first page.
    """
    image, path, url = metadata.get("image"), metadata.get("image_path"), metadata.get("image_url")
    if isinstance(image, str) and not is_picture_text(image):
        if _URL.match(image):
            image, url = None, image
        else:
            image, path = None, image
    if image is None:
        image = metadata.get("image_base64")
    index = _page_index(metadata, page_base, page_key, numbered_source=metadata.get("file_path") is not None)
    origins = (metadata.get(key) for key in ("file_path", "source"))
    file_path = next((it for it in origins if isinstance(it, (str, Path)) and it and not _URL.match(str(it))), None)
    label = metadata.get("page_label")
    return PageClues(
        image=image,
        image_path=path,
        file_path=file_path,
        image_url=None if url is None else str(url),
        index=index,
        label=None if label is None or page_key is not None else str(label),
        text=text,
        doc_id=doc_id,
    )


def is_data_uri(text: str) -> bool:
    """Whether a text is a ``data:`` URI."""
    return _DATA_URI.match(text) is not None


def is_picture_text(text: str) -> bool:
    """Whether a text is a picture: a ``data:`` URI of an image, or the base64 of an image or PDF file."""
    found = _DATA_URI.match(text)
    if found is not None:
        return found["kind"].lower().startswith("image/") or found["kind"].lower() == "application/pdf"
    try:
        head = base64.b64decode(text[:64].strip()[:32].translate(_TO_STANDARD), validate=True)
    except (binascii.Error, ValueError):
        return False
    return head.startswith(_IMAGE_HEADS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def decode_base64(text: str, *, name: str = "the image") -> bytes:
    """The bytes behind base64 text (standard or URL-safe, wrapped or not, padded or not) or a ``data:`` URI.

    Raises:
        PageError: neither.
    """
    found = _DATA_URI.match(text)
    if found is not None:
        if not found["options"].lower().endswith(";base64"):
            raise PageError(f"The data: URI of {name} is not base64. Expected data:image/png;base64,...")
        text = text[found.end() :]
    packed = "".join(text.split()).translate(_TO_STANDARD).rstrip("=")
    try:
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise PageError(
            f"The image of {name} is neither base64 nor a data: URI ({error}); it begins with {text[:24]!r}. "
            "A path goes into image_path."
        ) from error


_TO_STANDARD = str.maketrans("-_", "+/")


def _page_index(
    metadata: Mapping[str, Any], page_base: int, page_key: str | None, *, numbered_source: bool
) -> int | None:
    if page_key is not None:
        value, base = metadata.get(page_key), page_base
    elif metadata.get("page") is not None:
        value, base = metadata["page"], page_base
    elif numbered_source and re.fullmatch(r"\d{1,9}", str(metadata.get("source", "")), re.ASCII):
        value, base = metadata["source"], 1
    else:
        return None
    if value is None:
        return None
    key = page_key or ("page" if metadata.get("page") is not None else "source")
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"-?\d{1,9}", text, re.ASCII):
        raise PageError(f"The page number in metadata[{key!r}] is {value!r}. Expected a whole number.")
    index = int(text) - base
    if index < 0:
        raise PageError(
            f"metadata[{key!r}] is {value!r}, but pages are counted from {base} here. Set page_base=0 if the first "
            "page is 0."
        )
    return index


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


def _is_pdf(head: bytes) -> bool:
    return b"%PDF-" in head


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(1024)
    except OSError as error:
        raise PageError(f"{path} can't be opened ({error}). Check its permissions.", source=str(path)) from error


def _size_of(image: bytes | Path, name: str) -> tuple[int, int]:
    """Width and height from an image's head."""
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
