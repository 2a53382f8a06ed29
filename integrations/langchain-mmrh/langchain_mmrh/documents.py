"""LangChain documents: what they say of their page, and copies that carry a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.documents.base import Blob
from mmrh_retriever import Page, PageError
from mmrh_retriever.adapters import (
    ERROR_KEY,
    NEIGHBOUR_KEY,
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


def reranked(
    documents: Sequence[Document], query: str, settings: AdapterSettings, top_n: int | None, threshold: float | None
) -> list[Document]:
    """Copies of documents with their scores, best first; equals keep their order.

    Raises:
        QuestionError: an empty question.
        PageError, ContextOverflowError: a document that can't be read or is too long (``on_error="raise"``).
    """
    documents = list(documents)  # the caller's list may change meanwhile
    if not documents:
        return []
    ranked = settings.rank_items(
        query,
        documents,
        lambda document: clues_of(document, settings),
        retrieval_score_of=retrieval_score,
        top_n=top_n,
        score_threshold=threshold,
    )
    return [scored_copy(documents[item.position], item, settings) for item in ranked]


def clues_of(document: Document, settings: AdapterSettings) -> PageClues:
    """What a document says of its page.

    Beside the metadata of :func:`~mmrh_retriever.adapters.clues_from_metadata`, ``metadata["image"]`` or
    ``metadata["blob"]`` may be a LangChain ``Blob``, and ``page_content`` may be a picture in base64.

    Raises:
        PageError: a page number in the metadata that is not a number, or a blob whose text can't be encoded.
    """
    metadata, text = dict(document.metadata), document.page_content
    key = next((key for key in ("image", "blob") if isinstance(metadata.get(key), Blob)), None)
    if key is not None:
        blob = metadata.pop(key)
        try:
            metadata |= {"image_path": str(blob.path)} if blob.data is None else {"image": blob.as_bytes()}
        except (ValueError, LookupError) as error:
            raise PageError(
                f"The text of metadata[{key!r}] can't be encoded ({error}). Give the blob bytes."
            ) from error
    if is_picture_text(text):
        metadata, text = {"image_base64": text, **metadata}, ""
    source = metadata.get("source")
    doc_id = document.id or (source if isinstance(source, str) else None)
    return clues_from_metadata(
        metadata, text=text, doc_id=doc_id, page_base=settings.page_base, page_key=settings.page_key
    )


def retrieval_score(document: Document) -> Any:
    """The score that a document came with; ``None`` if it has none."""
    return document.metadata.get(SCORE_KEY, document.metadata.get("score"))


def page_document(page: Page) -> Document:
    """The document of a PDF's page, with the metadata that LangChain's own PDF loaders write."""
    source = str(page.metadata.get("path", page.metadata.get("url")))
    known = {
        "source": source,
        "file_path": source,
        "page": page.index,
        "total_pages": page.metadata["total_pages"],
        "page_label": page.label,
        "title": page.metadata.get("title"),
    }
    metadata = {name: value for name, value in known.items() if value is not None}
    return Document(page.text or "", metadata=metadata, id=f"{source}#{page.index}")


def scored_copy(document: Document, item: RankedItem, settings: AdapterSettings) -> Document:
    """A copy of a document with its score (and regions, and the score it came with) in the metadata.

    For a neighbour that no document holds, a document of its page.
    """
    if item.page is not None:
        document = page_document(item.page)
        document.metadata[settings.page_key or "page"] = item.page.index + settings.page_base
    stale = {SCORE_KEY, RETRIEVAL_SCORE_KEY, REGIONS_KEY, NEIGHBOUR_KEY, ERROR_KEY}
    metadata = {key: value for key, value in document.metadata.items() if key not in stale}
    metadata[SCORE_KEY] = item.score
    before = retrieval_score(document)
    if settings.keep_retrieval_score and before is not None:
        metadata[RETRIEVAL_SCORE_KEY] = before
    if settings.with_regions:
        metadata[REGIONS_KEY] = item.region_records()
    if item.neighbour_of is not None:
        metadata[NEIGHBOUR_KEY] = item.neighbour_of
    if item.error is not None:
        metadata[ERROR_KEY] = str(item.error)
    return document.model_copy(update={"metadata": metadata})
