"""The pages of a retriever's own PDF files: read once, run through the model once, and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.documents import Document
from mmrh_retriever import EncodedPages, MMRHError, Page, PageError, ScoredRegion, read_pdf
from mmrh_retriever.adapters import AdapterSettings, Lock, PageSource, RankedItem, with_some_regions
from mmrh_retriever.bm25 import bm25_scores

from langchain_mmrh.documents import page_document


@dataclass(frozen=True, slots=True)
class Answer:
    """What a question gave: scored documents, errors of others by their index, and how to rank pages' regions."""

    ranked: list[RankedItem]
    failed: dict[int, MMRHError]
    rank_regions: Callable[[list[Page]], Sequence[ScoredRegion]]


@dataclass(slots=True)
class _Shelf:
    """A document per page of some files; the pages that can be read, and errors of the others, by their index."""

    documents: list[Document] = field(default_factory=list)
    pages: dict[int, Page] = field(default_factory=dict)
    failed: dict[int, MMRHError] = field(default_factory=dict)
    encoded: EncodedPages | None = None
    encoded_by: tuple[Any, ...] = ()  # model, heads and settings
    not_encoded: dict[int, MMRHError] = field(default_factory=dict)

    def add(self, page: Page | PageError, file: str) -> None:
        index = len(self.documents)
        if isinstance(page, Page):
            self.pages[index] = page
            self.documents.append(page_document(page))
        else:
            self.failed[index] = page
            self.documents.append(Document("", metadata={"source": file}))

    def indices(self) -> dict[int, int]:
        """The pages' indices by the ``id`` of the page."""
        return {id(page): index for index, page in self.pages.items()}


class Library:
    """PDF files as documents. Copies of a retriever share it; a pickle goes without and reads the files again.

    Files are read at the first question and not watched: a retriever made anew sees what has changed.
    """

    def __init__(self) -> None:
        self._lock = Lock()
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

    def encode(
        self, shelf: _Shelf, settings: AdapterSettings, memory_budget: int
    ) -> tuple[EncodedPages | None, dict[int, MMRHError]]:
        """The pages encoded, now if they were not yet (with a bar on a terminal's stderr), and errors by index.

        Raises:
            PageError, ContextOverflowError: a page that can't be read or is too long (``on_error="raise"``).
        """
        reranker, indices = settings.reranker, shelf.indices()
        with self._lock:
            ranking_alike = (reranker.backbone.model, reranker.heads, reranker.settings)
            if shelf.encoded_by != ranking_alike:
                settings.warn_of_bundled(shelf.pages.values())
                shelf.encoded, errors = settings.without_unreadable(
                    list(shelf.pages.values()),
                    lambda pages: reranker.encode(pages, memory_budget=memory_budget, progress=True),
                )
                shelf.not_encoded = {indices[key]: error for key, error in errors.items()}
                shelf.encoded_by = ranking_alike
            return shelf.encoded, shelf.failed | shelf.not_encoded

    def ask_all(self, shelf: _Shelf, settings: AdapterSettings, question: str, memory_budget: int) -> Answer:
        """Rank all pages, which run through the model at the first question only.

        Raises:
            PageError, ContextOverflowError: a page that can't be read or is too long (``on_error="raise"``).
        """
        encoded, failed = self.encode(shelf, settings, memory_budget)
        if encoded is None:
            return Answer([], failed, lambda _: [])
        indices = shelf.indices()
        ranked = [RankedItem(indices[id(it.page)], float(it.score)) for it in encoded.rank(question)]
        return Answer(ranked, failed, lambda _: encoded.rank_regions(question))

    def ask_best(self, shelf: _Shelf, settings: AdapterSettings, question: str, candidates: int) -> Answer:
        """Rank the pages that BM25 finds in the text layer, and all pages that have none.

        Raises:
            ImportError: bm25s is missing.
            PageError, ContextOverflowError: a page that can't be read or is too long (``on_error="raise"``).
        """
        reranker, indices = settings.reranker, shelf.indices()
        chosen = shortlist(question, list(shelf.pages.values()), candidates)
        ranking, errors = settings.without_unreadable(
            chosen, lambda pages: reranker.rank(question, pages, progress=True)
        )
        failed = shelf.failed | {indices[key]: error for key, error in errors.items()}
        ranked = [RankedItem(indices[id(it.page)], float(it.score)) for it in ranking or []]
        return Answer(ranked, failed, lambda pages: reranker.rank_regions(question, pages))


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
            shelf.add(page, file)
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
