"""What a document says of the page it stands for, and pictures that are written as text (base64, ``data:`` URIs)."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mmrh_retriever.adapters.loader_forms import as_text, bare_name, files_named, page_index, total_pages
from mmrh_retriever.errors import PageError

_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*", b"%PDF-")
_DATA_URI = re.compile(r"data:(?P<kind>[\w.+/-]*)(?P<options>(?:;[\w=.+-]+)*),", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_TO_STANDARD = str.maketrans("-_", "+/")


@dataclass(frozen=True, slots=True)
class PageClues:
    """What a document says of its page. Whatever is unknown stays ``None``.

    The first of these that is given counts: ``image``, ``image_path``, ``file_path`` (or ``file_url`` or
    ``file_name``), ``image_url``, ``text``.

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
        file_url: the web address of the file, where there is no path of it.
        file_name: the file's name alone, where neither is known.
        total_pages: how many pages the file has.
    """

    image: Image.Image | bytes | str | None = None
    image_path: str | Path | None = None
    file_path: str | Path | None = None
    image_url: str | None = None
    index: int | None = None
    label: str | None = None
    text: str | None = None
    doc_id: str | None = None
    file_url: str | None = None
    file_name: str | None = None
    total_pages: int | None = None

    @property
    def file(self) -> str | Path | None:
        """The path, address or name of the file that the document was read from."""
        return self.file_path or self.file_url or self.file_name

    @property
    def of_pdf(self) -> bool:
        """Whether that file is a PDF, by its name; behind a web address also by a second name, or counted pages."""
        if self.file_path is None and self.file_url is not None:
            address = re.split("[?#]", self.file_url, maxsplit=1)[0]
            return self.total_pages is not None or _is_pdf_name(address) or _is_pdf_name(self.file_name)
        return _is_pdf_name(self.file)

    @property
    def names_a_page(self) -> bool:
        """Whether the document says that it is from a PDF, or which page it is of a file that it does not name."""
        numbers = (self.index, self.label, self.total_pages)
        return self.of_pdf if self.file is not None else any(number is not None for number in numbers)

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
    counted from ``page_base`` (0 or 1); a numeric ``source`` beside a ``file_path`` or another loader's form (then
    always counted from 1, see ``adapters.loader_forms``); or the printed ``page_label``. If ``page_key`` names another
    key, only this one counts.

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
    files = files_named(metadata)
    return PageClues(
        image=metadata.get("image_base64") if image is None else image,
        image_path=path,
        file_path=next((file for file in files if not is_web_address(str(file))), None),
        image_url=None if url is None else as_text(url),
        index=page_index(metadata, page_base, page_key),
        label=None if label is None or page_key is not None else as_text(label),
        text=text,
        doc_id=doc_id,
        file_url=next((str(file) for file in files if is_web_address(str(file))), None),
        file_name=bare_name(metadata),
        total_pages=total_pages(metadata),
    )


def _is_pdf_name(file: str | Path | None) -> bool:
    return file is not None and str(file).lower().endswith(".pdf")


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
