"""Retrievers over files of their own: settings that every adapter's retriever takes, and the ranking of their pages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, field_validator

from mmrh_retriever.adapters.clues import PageClues
from mmrh_retriever.adapters.page_sources import PageSource
from mmrh_retriever.adapters.ranking import AdapterSettings, RankedItem
from mmrh_retriever.adapters.telemetry import ranking_span
from mmrh_retriever.errors import MMRHError
from mmrh_retriever.images import IMAGE_ENDINGS
from mmrh_retriever.library.library import Library
from mmrh_retriever.library.settings import DEFAULT_CANDIDATES, DEFAULT_TEXTLESS, LibrarySettings
from mmrh_retriever.locks import Lock
from mmrh_retriever.ranking.encoded_pages import DEFAULT_MEMORY_BUDGET
from mmrh_retriever.settings import FirstStage, TextOrNone
from mmrh_retriever.types import Page


@dataclass(frozen=True, slots=True, eq=False)
class FilePage:
    """A page of a file with its score; ``page`` is ``None`` for a file that can't be read and was put last."""

    path: str
    page: Page | None
    item: RankedItem

    @property
    def known(self) -> dict[str, Any]:
        """What metadata says of the page beside its number: ``total_pages``, ``page_label``, ``title``, if known."""
        if self.page is None:
            return {}
        total, title = (self.page.metadata.get(name) for name in ("total_pages", "title"))
        found = {"total_pages": total, "page_label": self.page.label, "title": title}
        return {name: value for name, value in found.items() if value is not None}


class FileSettings(AdapterSettings):
    """Settings of a retriever over files: a :class:`~mmrh_retriever.Library` that the adapter makes and keeps."""

    files: tuple[str, ...] = Field((), description="PDF and image files, or folders of them.")
    first_stage: FirstStage = Field("all", description="Which pages of the files the model sees.")
    candidates: int = Field(DEFAULT_CANDIDATES, ge=1, description="How many pages the first stage picks.")
    textless: int = Field(
        DEFAULT_TEXTLESS, ge=0, description="Pages without text that are looked at beside them; more are refused."
    )
    embedding_model: TextOrNone = Field(None, description="The text encoder of the first stage; all-MiniLM-L6-v2.")
    memory_budget: int = Field(
        DEFAULT_MEMORY_BUDGET, ge=0, description="Bytes that are kept of the files' pages where all are looked at."
    )

    _library: _HeldLibrary = PrivateAttr(default_factory=lambda: _HeldLibrary())

    @field_validator("files", mode="before")
    @classmethod
    def _several_files(cls, value: object) -> object:
        if isinstance(value, (str, Path)):
            value = [value]
        return tuple(str(file) for file in value) if isinstance(value, Iterable) else value

    @property
    def library(self) -> Library:
        """The files as a library; copies of the adapter share it, a pickle goes without.

        ``store`` is its folder, too: texts are kept there as encoded pages are.
        """
        reranker, source = self.reranker, self.page_source()
        settings = LibrarySettings(
            first_stage=self.first_stage,
            candidates=self.candidates,
            textless=self.textless,
            page_pixels=self.pdf_pixels,
            pdf_backend=self.pdf_backend,
            layout=self.with_regions,
            on_error="raise" if self.on_error == "raise" else "skip",
            memory=self.memory_budget if self.first_stage == "all" else self.page_memory,
            disk=self.store_disk,
        )
        alike = (reranker.backbone.model, reranker.heads, reranker.settings, self.embedding_model, self.store)
        made_from = (self.files, settings, source, *alike)
        with self._library.lock:
            if self._library.made_from != made_from:
                self._library.made = Library(
                    self.files,
                    folder=self.store,
                    reranker=reranker,
                    embedder=self.embedding_model,
                    accept=lambda path: _accepted(path, source),
                    settings=settings,
                )
                self._library.made_from = made_from
            return self._library.made

    def warm_up(self) -> None:
        """Load the model and read the files; where all their pages are looked at, run these through the model, too.

        A bar shows the pages on a terminal's stderr.

        Raises:
            PageError, ContextOverflowError: a page that can't be read or is too long (``on_error="raise"``).
        """
        super().warm_up()
        if self.files:
            self.library.refresh()
            if self.first_stage == "all":
                self.library.encode(progress=True)

    def rank_files(
        self, question: str, *, top_n: int | None = None, score_threshold: float | None = None
    ) -> list[FilePage]:
        """Rank the files' pages for a question, best first. ``score_threshold`` counts instead of the setting.

        Raises:
            QuestionError: an empty question.
            PageError, ContextOverflowError: a page that can't be read or is too long (``on_error="raise"``).
            SettingsError: more pages without text than ``textless`` beside a first stage.
            ImportError: the text encoder is missing.
        """
        with ranking_span(question, self.model_label, top_n) as span:
            library = self.library
            self.warn_of_bundled(library.pages)
            answer = library.ask(question, progress=True)
            pages = dict(enumerate(answer.pages))
            span.read(answer.pages)
            indices = {id(page): index for index, page in pages.items()}
            failed: dict[int, MMRHError] = {}
            paths: dict[int, str] = {}
            for number, skipped in enumerate(answer.skipped, start=len(pages)):
                index = number if skipped.page is None else indices[id(skipped.page)]
                failed[index], paths[index] = skipped.error, skipped.path
            ranked = [RankedItem.of(scored.position, scored) for scored in answer.ranking]
            chosen = self.choose(ranked, failed, top_n=top_n, score_threshold=score_threshold)
            span.ranked((pages.get(item.position), item.score) for item in chosen)
            if self.with_regions:
                readable = {item.position: pages[item.position] for item in chosen if item.score is not None}
                chosen = self.add_regions(chosen, readable, lambda own: list(answer.rank_regions(own)))
            if self.neighbours is not None:
                ids = {index: (str(page.metadata["path"]), page.index) for index, page in pages.items()}
                chosen = self.add_neighbours(chosen, ids, ranked, failed)
            found = []
            for item in chosen:
                page = pages.get(item.position)
                path = paths[item.position] if page is None else str(page.metadata["path"])
                found.append(FilePage(path, page, item))
            return found


def _accepted(path: Path, source: PageSource) -> Path:
    """The path that a file is read from; refused beyond the limits that a document's pictures have, too."""
    found = source.path(path)
    if found.suffix.lower() in IMAGE_ENDINGS:
        source.page(PageClues(image_path=found))
    return found


class _HeldLibrary:
    """A library made from settings. A copy of the adapter shares it, a pickle goes without."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.made_from: tuple[Any, ...] = ()
        self.made: Library

    def __eq__(self, other: object) -> bool:
        """Adapters are equal whatever they have read so far."""
        return isinstance(other, _HeldLibrary)

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, memo: object) -> _HeldLibrary:
        return self

    def __reduce__(self) -> tuple[type[_HeldLibrary], tuple[()]]:
        return type(self), ()
