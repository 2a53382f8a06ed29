"""Haystack documents: what they say of their page, and copies that carry a score."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import filetype
from haystack import Document
from haystack.dataclasses import ByteStream
from mmrh_retriever import Page
from mmrh_retriever.adapters import (
    ERROR_KEY,
    NEIGHBOUR_KEY,
    REGIONS_KEY,
    RETRIEVAL_SCORE_KEY,
    AdapterSettings,
    PageClues,
    RankedItem,
    clues_from_metadata,
)

PAGE_KEY = "page_number"
"""Metadata: the page, counted from 1, where Haystack's splitters put it."""
_UNKNOWN_KINDS = (None, "", "application/octet-stream")


def distinct(documents: Iterable[Document]) -> list[Document]:
    """Documents without those of an id that came before; of each id, the one with the highest score."""
    found: dict[str, Document] = {}
    for document in documents:
        before = found.setdefault(document.id, document)
        if document.score is not None and (before.score is None or document.score > before.score):
            found[document.id] = document
    return list(found.values())


def clues_of(document: Document, settings: AdapterSettings) -> PageClues:
    """What a document says of its page.

    Beside the metadata of :func:`~mmrh_retriever.adapters.clues_from_metadata`, the ``blob`` may be an image or a PDF.
    Paths that are not absolute begin in ``allowed_root``.

    Raises:
        PageError: a page number in the metadata that is not a number.
    """
    clues = clues_from_metadata(
        document.meta,
        text=document.content,
        doc_id=document.id,
        page_base=settings.page_base,
        page_key=settings.page_key,
    )
    if document.blob is not None and _is_picture(document.blob):
        clues = replace(clues, image=document.blob.data)
    return clues if clues.file_path is None else _rooted(clues, Path(clues.file_path), settings.allowed_root)


def scored_copy(document: Document, item: RankedItem, settings: AdapterSettings) -> Document:
    """A copy of a document with its score; regions, and the score it came with, are in its metadata.

    For a neighbour that no document holds, a document of its page.
    """
    if item.page is not None:
        document = _page_document(item.page, settings)
    notes: dict[str, Any] = {}
    if settings.keep_retrieval_score and document.score is not None:
        notes[RETRIEVAL_SCORE_KEY] = document.score
    if settings.with_regions:
        notes[REGIONS_KEY] = item.region_records()
    if item.neighbour_of is not None:
        notes[NEIGHBOUR_KEY] = item.neighbour_of
    if item.error is not None:
        notes[ERROR_KEY] = str(item.error)
    stale = {RETRIEVAL_SCORE_KEY, REGIONS_KEY, NEIGHBOUR_KEY, ERROR_KEY}
    kept = {key: value for key, value in document.meta.items() if key not in stale}
    return replace(document, score=item.score, meta=kept | notes)


def _is_picture(blob: ByteStream) -> bool:
    """Whether a blob is an image or a PDF: by its MIME type, or by its bytes where that says nothing."""
    kind = filetype.guess_mime(blob.data) if blob.mime_type in _UNKNOWN_KINDS else blob.mime_type
    return kind is not None and (kind.lower().startswith("image/") or kind.lower() == "application/pdf")


def _rooted(clues: PageClues, file: Path, root: str | None) -> PageClues:
    """Clues whose file is looked for in a folder; converters write a PDF's name alone, unless told otherwise."""
    if clues.of_pdf and file.name == str(file):
        return replace(clues, file_path=None, file_name=file.name)
    return replace(clues, file_path=Path(root or "", file))


def _page_document(page: Page, settings: AdapterSettings) -> Document:
    source = str(page.metadata.get("path", page.metadata.get("url")))
    number = page.number if settings.page_key is None else page.index + settings.page_base
    meta = {"file_path": source, settings.page_key or PAGE_KEY: number, "total_pages": page.metadata["total_pages"]}
    return Document(id=f"{source}#{page.index}", content=page.text or None, meta=meta)
