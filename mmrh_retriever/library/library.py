"""The facade: a library of files that questions are asked of."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmrh_retriever.encoding.page_store import PageStore
from mmrh_retriever.errors import MMRHError, PageError, SettingsError
from mmrh_retriever.library.contents import Contents, Shelf
from mmrh_retriever.library.records import Records
from mmrh_retriever.library.settings import LibrarySettings
from mmrh_retriever.library.watching import Watch
from mmrh_retriever.locks import Lock
from mmrh_retriever.model.text_embeddings import EmbeddingScorer
from mmrh_retriever.ranking.encoded_pages import EncodedPages
from mmrh_retriever.ranking.inputs import in_thread
from mmrh_retriever.ranking.reranker import Reranker
from mmrh_retriever.ranking.shared_models import shared_reranker
from mmrh_retriever.ranking.unreadable import without_unreadable
from mmrh_retriever.settings import check_top_n
from mmrh_retriever.types import Page, ScoredPage, ScoredRegion

logger = logging.getLogger(__name__)

ENCODED_AT_ONCE = 16
"""Pages that are encoded together where they are to be kept only."""


@dataclass(frozen=True, slots=True, eq=False)
class Skipped:
    """A file, or one page of it, that could not be read, and why."""

    path: str
    error: MMRHError
    page: Page | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LibraryAnswer:
    """What a question gave.

    ``pages`` are the library's pages when it was asked; ``position`` in the ``ranking`` counts in them. ``skipped`` is
    what could not be read. ``rank_regions`` gives the best regions of some of the pages ranked, best first.
    """

    pages: tuple[Page, ...]
    ranking: list[ScoredPage]
    skipped: tuple[Skipped, ...]
    rank_regions: Callable[[Sequence[Page]], Sequence[ScoredRegion]]


class Library:
    """PDF and image files, or folders of them, that questions are asked of.

        library = Library("reports/", first_stage="bm25", folder="reports/.mmrh")
        for scored in library.rank("How did revenue change?", top_n=5):
            print(scored.page.doc_id, scored.page.number, scored.score)

    At each question the files are looked at: new, changed and removed ones are noticed by their content
    (``library.watching``). A first stage picks ``candidates`` pages, which the model then ranks; without one, with
    ``first_stage="all"``, it ranks all of them. Pages are encoded when a question needs them, or before, by
    :meth:`encode`. Where pages stand alone (``independent``, as with the bundled model), they are kept for the next
    questions.

    Args:
        files: PDF and image files, and folders, whose files of these kinds are taken.
        folder: where texts, vectors and encoded pages are kept for later processes; one folder per library. It holds
            the documents' text in plain form. Without one everything stays in memory.
        reranker: what ranks; by default the bundled model, which is loaded at first use and shared. If it has a store,
            encoded pages go there.
        embedder: the text encoder of ``first_stage="embedding"`` and ``"hybrid"``: a
            :class:`~mmrh_retriever.baselines.EmbeddingScorer`, or what makes one. By default all-MiniLM-L6-v2 (extra
            ``embedding``).
        accept: gives the path that a file is read from, or raises a :class:`PageError` to refuse it.
        settings, changes: :class:`~mmrh_retriever.library.settings.LibrarySettings` and its fields: ``first_stage``
            (``"bm25"``, ``"embedding"``, ``"hybrid"``, ``"all"``), ``candidates``, ``textless``, ``page_pixels``,
            ``pdf_backend``, ``layout``, ``on_error``, ``memory``, ``disk``.

    Threads may share a library. A deep copy is the library itself. A pickle holds the arguments alone.

    Raises:
        SettingsError: a setting that is out of its range, or no files.
        ImportError: the PDF backend is not installed.
        DataError: the folder can't be made.
    """

    def __init__(
        self,
        files: str | Path | Iterable[str | Path],
        *,
        folder: str | Path | None = None,
        reranker: Reranker | None = None,
        embedder: EmbeddingScorer | str | Path | None = None,
        accept: Callable[[Path], Path] | None = None,
        settings: LibrarySettings | None = None,
        **changes: Any,
    ) -> None:
        self.settings = LibrarySettings.of(settings, changes)
        self.files = tuple(Path(file).absolute() for file in ([files] if isinstance(files, (str, Path)) else files))
        if not self.files:
            raise SettingsError("A library needs files=: PDF or image files, or folders of them; got none.")
        self.folder = None if folder is None else Path(folder)
        self._arguments = {"folder": folder, "embedder": embedder, "accept": accept, "settings": self.settings}
        self._given = reranker
        self._reranker: Reranker | None = None
        self._embedder = embedder
        self._lock = Lock()
        records = Records(None if self.folder is None else self.folder / "documents")
        self._contents = Contents(Watch(self.files, accept), records, self.settings, self._encoder)
        self._encoded: tuple[Shelf, EncodedPages | None, dict[int, MMRHError]] | None = None
        self._skipped: tuple[Skipped, ...] = ()

    @property
    def reranker(self) -> Reranker:
        """What ranks, with the store where it keeps pages."""
        with self._lock:
            if self._reranker is None:
                made = shared_reranker() if self._given is None else self._given
                whole, folder = self.settings.first_stage == "all", self.folder
                if made.store is None and made.independent and not (whole and folder is None):
                    memory = 0 if whole else self.settings.memory_budget  # all pages' keys are held by EncodedPages
                    pages = None if folder is None else folder / "pages"
                    made = made.with_store(PageStore(memory, pages, disk=self.settings.disk), vision_memory=0)
                self._reranker = made
            return self._reranker

    @property
    def pages(self) -> tuple[Page, ...]:
        """All pages as the files are now, file by file."""
        return self.refresh().pages

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """What could not be read when files were last looked at or a question was last asked."""
        return self._skipped

    def refresh(self) -> Shelf:
        """Look at the files now, and read those that are new or changed. Every question does so, too.

        Raises:
            PageError: a file that can't be read (``on_error="raise"``); the others are taken in before.
        """
        with self._lock:
            before = {skipped.path for skipped in self._skipped}
            try:
                return self._contents.refresh()
            finally:
                failed = self._contents.failed
                self._skipped = tuple(Skipped(str(path), error) for path, error in failed.items())
                for skipped in self._skipped:
                    if skipped.path not in before and self.settings.on_error == "skip":
                        logger.warning("A file is left out: %s", skipped.error)

    def rank(
        self, question: str, *, top_n: int | None = None, with_tokens: bool = False, progress: bool = False
    ) -> list[ScoredPage]:
        """The pages that fit a question best, best first; ``page.doc_id`` and ``page.number`` name file and page.

        Args:
            question: text.
            top_n: how many to give; all that the first stage picked if ``None``.
            with_tokens: also give each page's per-token scores, for heat maps.
            progress: show a bar on stderr while pages are encoded, if that is a terminal.

        Raises:
            QuestionError: an empty question.
            PageError: the files hold no page, or a file or page can't be read (``on_error="raise"``).
            ContextOverflowError: a page or question too long.
            SettingsError: more pages without text than ``textless`` (see ``library.first_stage``).
            ImportError: the embedding model is missing.
        """
        check_top_n(top_n)
        return self.ask(question, with_tokens=with_tokens, progress=progress).ranking[:top_n]

    def ask(self, question: str, *, with_tokens: bool = False, progress: bool = False) -> LibraryAnswer:
        """:meth:`rank` with all that belongs to it."""
        self.reranker.prompter.question_segment(question)  # before anything takes long
        with self._lock:
            shelf, unread = self.refresh(), self._skipped
            if not shelf.pages and not unread:
                named = ", ".join(map(str, self.files))
                raise PageError(f"{named}: no PDF and no image stands there. Give a file or folder that has some.")
        if shelf.search is None:
            return self._ask_all(question, shelf, unread, with_tokens=with_tokens, progress=progress)
        chosen = shelf.search.choose(question, self.settings.candidates, self.settings.textless)
        reranker = self.reranker
        ranking, errors = self._run(
            [shelf.pages[index] for index in chosen],
            lambda pages: reranker.rank(question, pages, with_tokens=with_tokens, progress=progress),
        )
        return self._answer(shelf, ranking or [], errors, unread, lambda own: reranker.rank_regions(question, own))

    def encode(self, *, progress: bool = False) -> None:
        """Run all pages through the model now, so that no question waits for it; pages kept before are not run again.

        They need room: the settings' ``disk``, or ``memory`` where there is no folder.

        Raises:
            PageError, ContextOverflowError: a page that can't be read or is too long (``on_error="raise"``).
            SettingsError: a model whose pages depend on those before them keeps none for a first stage.
        """
        shelf, reranker = self.refresh(), self.reranker
        if shelf.search is None:
            self._encode_all(shelf, progress=progress)
            return
        if reranker.store is None or not reranker.independent:
            raise SettingsError(
                "This model reads each page behind those before it, and a first stage picks other pages for each "
                "question, so nothing can be encoded before. Give a reranker with independent=True, or choose "
                'first_stage="all".'
            )
        for start in tqdm(
            range(0, len(shelf.pages), ENCODED_AT_ONCE), desc="pages", disable=None if progress else True, leave=False
        ):
            self._run(shelf.pages[start : start + ENCODED_AT_ONCE], reranker.encode)

    arank = in_thread(rank)
    aask = in_thread(ask)

    def __deepcopy__(self, memo: object) -> Library:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self._given is not None or isinstance(self._embedder, EmbeddingScorer):
            raise SettingsError(
                "A library that was given a loaded model can't be pickled. Make it where it is used, or let it load "
                "the model itself (without reranker=, and with a name for embedder=)."
            )
        return _opened, (self.files, self._arguments)

    def _encoder(self) -> EmbeddingScorer:
        if not isinstance(self._embedder, EmbeddingScorer):
            self._embedder = EmbeddingScorer(self._embedder)
        return self._embedder

    def _ask_all(
        self, question: str, shelf: Shelf, unread: tuple[Skipped, ...], *, with_tokens: bool, progress: bool
    ) -> LibraryAnswer:
        encoded, errors = self._encode_all(shelf, progress=progress)
        if encoded is None:
            return self._answer(shelf, [], errors, unread, lambda _: [])
        ranking = encoded.rank(question, with_tokens=with_tokens)
        return self._answer(shelf, ranking, errors, unread, lambda _: encoded.rank_regions(question))

    def _encode_all(self, shelf: Shelf, *, progress: bool) -> tuple[EncodedPages | None, dict[int, MMRHError]]:
        """All pages encoded, now if they were not yet, and errors by the ``id`` of their page."""
        reranker, memory = self.reranker, self.settings.memory_budget
        with self._lock:
            if self._encoded is None or self._encoded[0] is not shelf:
                self._encoded = None  # two at once would take twice the memory
                encoded, errors = self._run(
                    shelf.pages, lambda pages: reranker.encode(pages, memory_budget=memory, progress=progress)
                )
                self._encoded = shelf, encoded, errors
            return self._encoded[1:]

    def _run(self, pages: Sequence[Page], run: Callable[[list[Page]], Any]) -> tuple[Any, dict[int, MMRHError]]:
        if self.settings.on_error == "raise":
            return (run(list(pages)) if pages else None), {}
        return without_unreadable(self.reranker, pages, run)

    def _answer(
        self,
        shelf: Shelf,
        ranking: Sequence[ScoredPage],
        errors: dict[int, MMRHError],
        unread: tuple[Skipped, ...],
        rank_regions: Callable[[Sequence[Page]], Sequence[ScoredRegion]],
    ) -> LibraryAnswer:
        positions = {id(page): index for index, page in enumerate(shelf.pages)}
        of_pages = (
            Skipped(str(page.metadata["path"]), errors[id(page)], page) for page in shelf.pages if id(page) in errors
        )
        skipped = (*unread, *of_pages)
        for one in skipped[len(unread) :]:
            logger.warning("A page is left out: %s", one.error)
        with self._lock:
            self._skipped = skipped
        found = [replace(scored, position=positions[id(scored.page)]) for scored in ranking]
        return LibraryAnswer(shelf.pages, found, skipped, rank_regions)


def _opened(files: tuple[Path, ...], arguments: dict[str, Any]) -> Library:
    return Library(files, **arguments)
