"""The retriever: over another retriever's documents, or over PDF files of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, RetrieverLike
from langchain_core.runnables import run_in_executor
from mmrh_retriever.adapters import check_top_n
from pydantic import ConfigDict, Field, PrivateAttr, field_validator, model_validator

from langchain_mmrh.documents import reranked, scored_copy
from langchain_mmrh.library import Library
from langchain_mmrh.serializing import SerializableSettings


class MMRHRetriever(SerializableSettings, BaseRetriever):
    """Retrieves pages by what a vision-language model's retrieval heads attend to on them.

    It reranks the documents of any retriever (``base_retriever=``), or the pages of PDF files (``files=``). The pages
    of files run through the model once and are kept, so that each question costs its own few tokens only. For
    collections too large to keep, ``first_stage="bm25"`` picks ``candidates`` pages by their text layer for each
    question; pages without text are always among them.

        retriever = MMRHRetriever(files=["scans.pdf"], k=3)  # without model=: a small one, for scans
        retriever.invoke("How did revenue change?")
        retriever.invoke("Who sits on the board?", k=1)

    All other settings are those of :class:`mmrh_retriever.adapters.AdapterSettings`. ``reranker=`` takes a
    :class:`mmrh_retriever.Reranker` that is loaded already.
    """

    model_config = ConfigDict(extra="forbid")

    base_retriever: RetrieverLike | None = Field(None, description="Whose documents are reranked.")
    files: tuple[str, ...] = Field((), description="PDF files, if there is no base retriever.")
    k: int = Field(4, ge=1, description="How many documents to return.")
    first_stage: Literal["all", "bm25"] = Field("all", description="Which pages of the files the model sees.")
    candidates: int = Field(50, ge=1, description="How many pages BM25 picks.")
    memory_budget: int = Field(4 * 1024**3, ge=0, description="Bytes that the model keeps of the files' pages.")

    _library: Library = PrivateAttr(default_factory=Library)

    @field_validator("files", mode="before")
    @classmethod
    def _several_files(cls, value: object) -> object:
        if isinstance(value, (str, Path)):
            value = [value]
        return tuple(str(file) for file in value) if isinstance(value, (list, tuple)) else value

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.base_retriever is None) == (not self.files):
            got = "both" if self.files else "neither"
            raise ValueError(f"Give base_retriever=, or files= with PDF files; got {got}.")
        return self

    def warm_up(self) -> None:
        """Load the model and, over files, read them and run their pages through it, so that no question waits for it.

        With ``first_stage="bm25"`` the pages run at each question. A bar shows the pages on a terminal's stderr.

        Raises:
            PageError, ContextOverflowError: a page that can't be read or is too long (``on_error="raise"``).
        """
        super().warm_up()
        if self.base_retriever is None:
            shelf = self._library.shelf(self.files, self)
            if self.first_stage == "all":
                self._library.encode(shelf, self, self.memory_budget)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        score_threshold: float | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        self._check(k, kwargs)
        if self.base_retriever is None:
            return self._from_files(query, k, score_threshold)
        found = self.base_retriever.invoke(query, config={"callbacks": run_manager.get_child()}, **kwargs)
        return reranked(found, query, self, k or self.k, score_threshold)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        score_threshold: float | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        self._check(k, kwargs)
        if self.base_retriever is None:
            return await run_in_executor(None, self._from_files, query, k, score_threshold)
        found = await self.base_retriever.ainvoke(query, config={"callbacks": run_manager.get_child()}, **kwargs)
        return await run_in_executor(None, reranked, found, query, self, k or self.k, score_threshold)

    def _check(self, k: int | None, more: dict[str, Any]) -> None:
        check_top_n(k, "k")
        if self.base_retriever is None and more:
            raise TypeError(f"Over files, a call takes k= and score_threshold= only; got {', '.join(sorted(more))}.")

    def _from_files(self, query: str, k: int | None, score_threshold: float | None) -> list[Document]:
        library, shelf = self._library, self._library.shelf(self.files, self)
        if self.first_stage == "all":
            answer = library.ask_all(shelf, self, query, self.memory_budget)
        else:
            answer = library.ask_best(shelf, self, query, self.candidates)
        chosen = self.choose(answer.ranked, answer.failed, top_n=k or self.k, score_threshold=score_threshold)
        if self.with_regions:
            pages = {item.position: shelf.pages[item.position] for item in chosen if item.score is not None}
            chosen = self.add_regions(chosen, pages, answer.rank_regions)
        if self.neighbours is not None:
            ids = {index: (str(page.metadata["path"]), page.index) for index, page in shelf.pages.items()}
            chosen = self.add_neighbours(chosen, ids, answer.ranked, answer.failed)
        return [scored_copy(shelf.documents[item.position], item, self) for item in chosen]
