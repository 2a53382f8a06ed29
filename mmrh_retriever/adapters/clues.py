"""What a document says of the page it stands for, and pictures that are written as text (base64, ``data:`` URIs)."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mmrh_retriever.errors import PageError

_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*", b"%PDF-")
_DATA_URI = re.compile(r"data:(?P<kind>[\w.+/-]*)(?P<options>(?:;[\w=.+-]+)*),", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_SHOWN = 40  # characters of a wrong page number in messages
_TO_STANDARD = str.maketrans("-_", "+/")


@dataclass(frozen=True, slots=True)
class PageClues:
    """What a document says of its page. Whatever is unknown stays ``None``.

    The first of these that is given counts: ``image``, ``image_path``, ``file_path``, ``image_url``, ``text``.

    Attributes:
        image: a PIL image, the bytes of an image or PDF file, the same in base64, or a ``data:`` URI.
        image_path: an image file (or a PDF file, with ``index`` or ``label``).
        file_path: the file that the document was read from. An image counts by itself, a PDF together with ``index``
            or ``label`` (or if it has one page), anything else not at all.
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

    @property
    def has_text(self) -> bool:
        """Whether there is text with anything but white space."""
        return bool(self.text and self.text.strip())


def clues_from_metadata(
    metadata: Mapping[str, Any],
    *,
    text: str | None = None,
    doc_id: str | None = None,
    page_base: int = 0,
    page_key: str | None = None,
) -> PageClues:
    """Clues from the metadata that loaders of LangChain and LlamaIndex write.

    ``image`` and ``image_base64`` hold a picture (``image`` may also be a path or a web address), ``image_path`` and
    ``image_url`` say where one is, ``file_path`` and ``source`` name the file that was read. The page is ``page``,
    counted from ``page_base`` (0 or 1); a numeric ``source`` beside a ``file_path`` (then always counted from 1); or
    the printed ``page_label``. If ``page_key`` names another key, only this one counts.

    Raises:
        PageError: a page number that is not a number, or is before the first page; a number of thousands of digits.
    """
    image, path, url = metadata.get("image"), metadata.get("image_path"), metadata.get("image_url")
    if isinstance(image, str) and not is_picture_text(image):
        if is_web_address(image):
            image, url = None, image
        else:
            image, path = None, image
    label = metadata.get("page_label")
    files = [it for it in (metadata.get("file_path"), metadata.get("source")) if isinstance(it, (str, Path)) and it]
    return PageClues(
        image=metadata.get("image_base64") if image is None else image,
        image_path=path,
        file_path=next((file for file in files if not is_web_address(str(file))), None),
        image_url=None if url is None else _text(url),
        index=_page_index(metadata, page_base, page_key),
        label=None if label is None or page_key is not None else _text(label),
        text=text,
        doc_id=doc_id,
    )


def is_web_address(text: str) -> bool:
    """Whether a text begins with a scheme and ``://``."""
    return _URL.match(text) is not None


def is_data_uri(text: str) -> bool:
    """Whether a text is a ``data:`` URI."""
    return _DATA_URI.match(text) is not None


def is_picture_text(text: str) -> bool:
    """Whether a text is a picture: a ``data:`` URI of an image, or the base64 of an image or PDF file."""
    found = _DATA_URI.match(text)
    if found is not None:
        return found["kind"].lower().startswith("image/") or found["kind"].lower() == "application/pdf"
    try:
        start = base64.b64decode(text[:64].strip()[:32].translate(_TO_STANDARD), validate=True)
    except ValueError:
        return False
    return start.startswith(_SIGNATURES) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")


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
    except ValueError as error:
        problem = f"is neither base64 nor a data: URI ({error}); it begins with {text[:24]!r}"
        raise PageError(f"The image of {name} {problem}. A path goes into image_path.") from error


def _page_index(metadata: Mapping[str, Any], page_base: int, page_key: str | None) -> int | None:
    key, base = "page" if page_key is None else page_key, page_base
    source = "" if metadata.get("file_path") is None else _text(metadata.get("source"))
    if page_key is None and metadata.get("page") is None and re.fullmatch(r"\d{1,9}", source, re.ASCII):
        key, base = "source", 1
    value = metadata.get(key)
    if value is None:
        return None
    number = _text(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"-?\d{1,9}", number, re.ASCII):
        got = number if len(number) <= _SHOWN else f"{number[:_SHOWN]}..."
        raise PageError(f"The page number in metadata[{key!r}] is {got!r}. Expected a whole number.")
    if int(number) < base:
        counted = f"pages are counted from {base} here. Set page_base=0 if the first page is 0."
        raise PageError(f"metadata[{key!r}] is {value!r}, but {counted}")
    return int(number) - base


def _text(value: object) -> str:
    try:
        return str(value)
    except (ValueError, RecursionError) as error:
        raise PageError(f"A value of the metadata can't be written as text ({error}). Remove it.") from error
