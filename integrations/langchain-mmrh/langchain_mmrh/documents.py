"""LangChain documents: what they say of their page, and copies that carry a score."""

from __future__ import annotations

from typing import Any

from langchain_core.documents import Document
from langchain_core.documents.base import Blob
from mmrh_retriever.adapters import (
    ERROR_KEY,
    REGIONS_KEY,
    RETRIEVAL_SCORE_KEY,
    AdapterSettings,
    PageClues,
    RankedItem,
    clues_from_metadata,
    is_picture_text,
)

SCORE_KEY = "relevance_score"
"""Metadata: the score, where LangChain's other rerankers put theirs."""


def clues_of(document: Document, settings: AdapterSettings) -> PageClues:
    """What a document says of its page.

    Beside the metadata of :func:`~mmrh_retriever.adapters.clues_from_metadata`, ``metadata["image"]`` or
    ``metadata["blob"]`` may be a LangChain ``Blob``, and ``page_content`` may be a picture in base64.

    Raises:
        PageError: a page number in the metadata that is not a number.
    """
    metadata, text = _without_blob(document.metadata), document.page_content
    if is_picture_text(text):
        metadata, text = {"image_base64": text, **metadata}, ""
    return clues_from_metadata(
        metadata,
        text=text,
        doc_id=document.id or _origin(document.metadata),
        page_base=settings.page_base,
        page_key=settings.page_key,
    )


def scored_copy(document: Document, item: RankedItem, settings: AdapterSettings) -> Document:
    """A copy of a document with its score (and regions, and the score it came with) in the metadata."""
    stale = {SCORE_KEY, RETRIEVAL_SCORE_KEY, REGIONS_KEY, ERROR_KEY}
    metadata = {key: value for key, value in document.metadata.items() if key not in stale}
    metadata[SCORE_KEY] = item.score
    before = document.metadata.get(SCORE_KEY, document.metadata.get("score"))
    if settings.keep_retrieval_score and before is not None:
        metadata[RETRIEVAL_SCORE_KEY] = before
    if settings.with_regions:
        metadata[REGIONS_KEY] = item.region_records()
    if item.error is not None:
        metadata[ERROR_KEY] = str(item.error)
    return document.model_copy(update={"metadata": metadata})


def _without_blob(metadata: dict[Any, Any]) -> dict[Any, Any]:
    key = next((key for key in ("image", "blob") if isinstance(metadata.get(key), Blob)), None)
    if key is None:
        return metadata
    blob = metadata[key]
    plain = {name: value for name, value in metadata.items() if name != key}
    if blob.data is not None:
        return {**plain, "image": blob.as_bytes()}
    return {**plain, "image_path": str(blob.path)}


def _origin(metadata: dict[Any, Any]) -> str | None:
    source = metadata.get("source")
    return source if isinstance(source, str) else None
