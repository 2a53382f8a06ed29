"""Documents of a request as pages. Lengths, pixels and page numbers are checked before anything is decoded.

A document holds what it is ranked by. It can name no file of the server; web addresses are fetched only if the settings
allow it, as for adapters. PDFs are read in a process of their own.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

from mmrh_retriever.adapters.clues import PageClues, is_data_uri, is_web_address
from mmrh_retriever.adapters.page_sources import PageSource
from mmrh_retriever.errors import PageError
from mmrh_retriever.pdf.reader import PdfPageImage, read_pdf
from mmrh_retriever.serving.bodies import ContentDocument, Document, ImageDocument, PdfDocument, TextDocument, TextPart
from mmrh_retriever.types import Page

LETTERS_PER_TOKEN = 16
"""More than tokens have on average, so that the last ones of a beginning need not be known."""


@dataclass(frozen=True, slots=True, eq=False)
class ReadDocument:
    """A document's page; ``key`` is equal for pages of the same content."""

    page: Page
    key: bytes


def read_document(document: Document, index: int, source: PageSource) -> ReadDocument:
    """The page of the document at ``index`` of a request.

    Raises:
        PageError: the document is refused or can't be read; the message names it.
    """
    page = source.page(clues_of(document, f"documents[{index}]", allow_urls=source.allow_urls))
    said = hashlib.sha256((page.text or "").encode())
    if isinstance(page.image, PdfPageImage):
        size = b"%dx%d" % (page.image.width, page.image.height)
        said.update(b"pdf %d " % page.index + size + hashlib.sha256(page.image.file.data or b"").digest())
        page = replace(page, image=replace(page.image, pixels_key=b"served " + said.digest()))
    elif isinstance(page.image, bytes):
        said.update(b"image " + hashlib.sha256(page.image).digest())
    return ReadDocument(page, said.digest())


def clues_of(document: Document, name: str, *, allow_urls: bool = False) -> PageClues:
    """What a document says of its page. ``name`` is what messages call it.

    Raises:
        PageError: several images, or an address where none is allowed.
    """
    match document:
        case str():
            return PageClues(text=document, doc_id=name)
        case TextDocument():
            return PageClues(text=document.text, doc_id=name)
        case PdfDocument():
            return _with_picture(PageClues(index=document.page - 1, doc_id=name), document.pdf, allow_urls=False)
        case ImageDocument():
            return _with_picture(PageClues(text=document.text, doc_id=name), document.image, allow_urls=allow_urls)
        case ContentDocument():
            texts = [part.text for part in document.content if isinstance(part, TextPart)]
            images = [part.image_url.url for part in document.content if not isinstance(part, TextPart)]
            if len(images) > 1:
                raise PageError(f"{name} has {len(images)} images. Expected one at most: give each a document.")
            clues = PageClues(text="\n".join(texts) or None, doc_id=name)
            return _with_picture(clues, images[0], allow_urls=allow_urls) if images else clues


def _with_picture(clues: PageClues, picture: str, *, allow_urls: bool) -> PageClues:
    if is_data_uri(picture) or not is_web_address(picture):
        return replace(clues, image=picture)
    if allow_urls and picture.lower().startswith(("http://", "https://")):
        return replace(clues, image_url=picture)
    raise PageError(
        f"{clues.doc_id} names an address, which this server does not read. Expected base64 or a data: URI.",
        source=clues.doc_id,
    )


def with_layout(page: Page, source: PageSource) -> Page:
    """A page with its regions, for which a PDF's page is read once more.

    Raises:
        PageError: the page can't be read any more.
    """
    if not isinstance(page.image, PdfPageImage):
        return page
    file = page.image.file
    (read,) = read_pdf(
        file.data or file.source, pages=[page.index], layout=True, max_pixels=source.pdf_pixels, isolate=source.isolate
    )
    return replace(page, regions=read.regions)


def cut_text(page: Page, tokenizer: Any, tokens: int | None) -> Page:
    """A page of text alone, cut to so many of the tokenizer's tokens; others as they are."""
    if tokens is None or page.image is not None or page.text is None:
        return page
    length = LETTERS_PER_TOKEN * tokens  # a long text is not read beyond what it is cut to
    while True:
        offsets = tokenizer.backend_tokenizer.encode(page.text[:length], add_special_tokens=False).offsets
        if len(offsets) > tokens or length >= len(page.text):
            break
        length *= 4
    kept = page.text if len(offsets) <= tokens else page.text[: offsets[tokens - 1][1]]
    return replace(page, text=kept if kept.strip() else page.text)
