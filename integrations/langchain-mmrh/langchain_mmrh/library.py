"""The pages of a retriever's own PDF files: read once, run through the model once, and kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.documents import Document
from mmrh_retriever import EncodedPages, MMRHError, Page, PageError, Reranker, ScoredRegion, read_pdf
from mmrh_retriever.adapters import AdapterSettings, PageSource, RankedItem, with_some_regions
from mmrh_retriever.bm25 import bm25_scores


@dataclass(frozen=True, slots=True)
class Answer:
    """What a question gave: scored documents, errors of others by their index, and how to rank pages' regions."""

    ranked: list[RankedItem]
    failed: dict[int, MMRHError]
    rank_regions: Callable[[list[Page]], Sequence[ScoredRegion]]


@dataclass(slots=True)
class _Shelf:
    """The pages of some files, and a document per page; a page that can't be read is an error."""

    documents: list[Document] = field(default_factory=list)
    pages: list[Page | PageError] = field(default_factory=list)
    encoded: EncodedPages | None = None
    encoded_by: Reranker | None = None
    errors: dict[int, MMRHError] = field(default_factory=dict)  # by index, as found while encoding

    def indices(self) -> dict[int, int]:
        """The pages' indices by the ``id`` of the page."""
        return {id(page): index for index, page in enumerate(self.pages)}

    def readable(self) -> list[Page]:
        return [page for page in self.pages if isinstance(page, Page)]

    def unreadable(self) -> dict[int, MMRHError]:
        return {index: page for index, page in enumerate(self.pages) if isinstance(page, PageError)}


class Library:
    """PDF files as documents. Copies of a retriever share it; a pickle goes without and reads the files again.

    Files are read at the first question and not watched: a retriever made anew sees what has changed.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._shelves: dict[tuple[tuple[str, ...], str, bool, PageSource], _Shelf] = {}

    def __eq__(self, other: object) -> bool:
        """Retrievers are equal whatever they have read so far."""
        return isinstance(other, Library)

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, memo: object) -> Library:
        return self

    def __reduce__(self) -> tuple[type[Library], tuple[()]]:
        return type(self), ()

    def shelf(self, files: Sequence[str], settings: AdapterSettings) -> _Shelf:
        """The pages of files, read now if they were not yet.

        Raises:
            PageError: a file that can't be read (``on_error="raise"``).
        """
        key = (tuple(files), settings.on_error, settings.with_regions, settings.page_source())
        with self._lock:
            if key not in self._shelves:
                self._shelves = {key: _read(files, settings)}
            return self._shelves[key]

    def ask_all(self, shelf: _Shelf, settings: AdapterSettings, question: str, memory_budget: int) -> Answer:
        """Rank all pages, which run through the model at the first question only.

        Raises:
            PageError, ContextOverflowError: a page that can't be read or is too long (``on_error="raise"``).
        """
        reranker, indices = settings.reranker, shelf.indices()
        with self._lock:
            if shelf.encoded_by is None or not _alike(shelf.encoded_by, reranker):
                encoded, errors = settings.without_unreadable(
                    shelf.readable(), lambda pages: reranker.encode(pages, memory_budget=memory_budget)
                )
                shelf.errors = shelf.unreadable() | {indices[key]: error for key, error in errors.items()}
                shelf.encoded, shelf.encoded_by = encoded, reranker
            encoded, failed = shelf.encoded, dict(shelf.errors)
        if encoded is None:
            return Answer([], failed, lambda _: [])
        ranked = [RankedItem(indices[id(it.page)], float(it.score)) for it in encoded.rank(question)]
        return Answer(ranked, failed, lambda _: encoded.rank_regions(question))

    def ask_best(self, shelf: _Shelf, settings: AdapterSettings, question: str, candidates: int) -> Answer:
        """Rank the pages that BM25 finds in the text layer, and all pages that have none.

        Raises:
            ImportError: bm25s is missing.
            PageError, ContextOverflowError: a page that can't be read or is too long (``on_error="raise"``).
        """
        reranker, indices = settings.reranker, shelf.indices()
        chosen = shortlist(question, shelf.readable(), candidates)
        ranking, errors = settings.without_unreadable(chosen, lambda pages: reranker.rank(question, pages))
        failed = shelf.unreadable() | {indices[key]: error for key, error in errors.items()}
        ranked = [RankedItem(indices[id(it.page)], float(it.score)) for it in ranking or []]
        return Answer(ranked, failed, lambda pages: reranker.rank_regions(question, pages))


def _alike(one: Reranker, other: Reranker) -> bool:
    """Whether two rerankers score alike, so that pages encoded by one serve the other."""
    return (one.backbone.model, one.heads, one.settings) == (other.backbone.model, other.heads, other.settings)


def shortlist(question: str, pages: Sequence[Page], count: int) -> list[Page]:
    """The ``count`` pages whose text layer fits a question best by BM25, and all without text, in their order.

    Raises:
        ImportError: bm25s is missing.
    """
    worded = [page for page in pages if page.text]
    scores = bm25_scores([question], [page.text or "" for page in worded])[0]
    best = sorted(range(len(worded)), key=lambda index: -scores[index])[:count]
    kept = {id(worded[index]) for index in best}
    return [page for page in pages if id(page) in kept or not page.text]


def _read(files: Sequence[str], settings: AdapterSettings) -> _Shelf:
    shelf = _Shelf()
    for file in files:
        for page in _pages_of(file, settings):
            shelf.pages.append(page)
            shelf.documents.append(
                _document(page) if isinstance(page, Page) else Document("", metadata={"source": file})
            )
    return shelf


def _pages_of(file: str, settings: AdapterSettings) -> list[Page] | list[PageError]:
    """A file's pages, or why it can't be read."""
    try:
        path = settings.page_source().path(file)
        pages = read_pdf(path, max_pixels=settings.pdf_pixels, layout=settings.with_regions)
    except PageError as error:
        if settings.on_error == "raise":
            raise
        return [error]
    return [with_some_regions(page) for page in pages] if settings.with_regions else pages


def _document(page: Page) -> Document:
    """The document of a PDF page, with the metadata that LangChain's own PDF loaders write."""
    source = str(page.metadata["path"])
    metadata: dict[str, Any] = {
        "source": source,
        "file_path": source,
        "page": page.index,
        "total_pages": page.metadata["total_pages"],
    }
    if page.label is not None:
        metadata["page_label"] = page.label
    if "title" in page.metadata:
        metadata["title"] = page.metadata["title"]
    return Document(page.text or "", metadata=metadata, id=f"{source}#{page.index}")
