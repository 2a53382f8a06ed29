"""The document compressor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import run_in_executor
from mmrh_retriever.adapters import check_top_n
from pydantic import ConfigDict, Field

from langchain_mmrh.documents import reranked
from langchain_mmrh.serializing import SerializableSettings


class MMRHRerank(SerializableSettings, BaseDocumentCompressor):
    """Reranks documents by what a vision-language model's retrieval heads attend to on their pages.

    A document's page is its image (in memory, by path, or by web address if ``allow_urls`` is set), the page of
    the PDF that its metadata names, or its text. Documents are copied, never changed; the score is in
    ``metadata["relevance_score"]``. The model is loaded at first use, once per process.

        compressor = MMRHRerank(model="Qwen/Qwen3-VL-8B-Instruct", top_n=5)  # without model=: a small one, for scans
        retriever = ContextualCompressionRetriever(base_compressor=compressor, base_retriever=base)

    All other settings are those of :class:`mmrh_retriever.adapters.AdapterSettings`. ``reranker=`` takes a
    :class:`mmrh_retriever.Reranker` that is loaded already.
    """

    model_config = ConfigDict(extra="forbid")

    top_n: int | None = Field(None, ge=1, description="How many documents to return; all if None.")

    def compress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
    ) -> list[Document]:
        """Rerank documents for a question; ``top_n`` and ``score_threshold`` count instead of the settings.

        ``callbacks`` is not used: nothing is called that reports.

        Returns:
            Copies, best first; equals keep their order.

        Raises:
            QuestionError: an empty question.
            PageError, ContextOverflowError: a document that can't be read or is too long (``on_error="raise"``).
            SettingsError: ``top_n`` below 1.
        """
        del callbacks
        check_top_n(top_n)
        return reranked(documents, query, self, self.top_n if top_n is None else top_n, score_threshold)

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None, **options: Any
    ) -> list[Document]:
        """:meth:`compress_documents` in a thread, with its options; the event loop goes on."""
        return await run_in_executor(None, self.compress_documents, documents, query, callbacks, **options)
