"""The retriever: over another retriever's documents, or over PDF files of its own."""

from __future__ import annotations

from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, RetrieverLike
from langchain_core.runnables import run_in_executor
from mmrh_retriever.adapters import FileSettings, check_top_n
from pydantic import ConfigDict, Field, model_validator

from langchain_mmrh.documents import page_document, reranked, scored_copy
from langchain_mmrh.serializing import SerializableSettings


class MMRHRetriever(FileSettings, SerializableSettings, BaseRetriever):
    """Retrieves pages by what a vision-language model's retrieval heads attend to on them.

    It reranks the documents of any retriever (``base_retriever=``), or the pages of PDF and image files, or folders of
    them (``files=``), which are a :class:`mmrh_retriever.Library`: looked at again at each question. Their pages run
    through the model once and are kept, so that each question costs its own few tokens only. For collections too large
    to keep, ``first_stage="bm25"``, ``"embedding"`` or ``"hybrid"`` picks ``candidates`` pages by their text for each
    question; pages without text are always among them, or refused where they are too many (``textless``).

        retriever = MMRHRetriever(files=["scans.pdf"], k=3)  # without model=: a small one, for scans
        retriever.invoke("How did revenue change?")
        retriever.invoke("Who sits on the board?", k=1)

    All other settings are those of :class:`mmrh_retriever.adapters.AdapterSettings`. ``reranker=`` takes a
    :class:`mmrh_retriever.Reranker` that is loaded already.
    """

    model_config = ConfigDict(extra="forbid")

    base_retriever: RetrieverLike | None = Field(None, description="Whose documents are reranked.")
    k: int = Field(4, ge=1, description="How many documents to return.")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.base_retriever is None) == (not self.files):
            got = "both" if self.files else "neither"
            raise ValueError(f"Give base_retriever=, or files= with PDF files; got {got}.")
        return self

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
        found = []
        for of_page in self.rank_files(query, top_n=k or self.k, score_threshold=score_threshold):
            page, unread = of_page.page, {"source": of_page.path}
            document = Document("", metadata=unread) if page is None else page_document(page)
            found.append(scored_copy(document, of_page.item, self))
        return found
