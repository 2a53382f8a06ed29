"""A retriever with known documents, and how the tests wrap it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from langchain_mmrh import MMRHRetriever

QUESTION = "How did revenue change?"
REPORT = Path(__file__).parents[3] / "examples" / "sample_report.pdf"


def doc(score: float, **fields: Any) -> Document:
    return Document(f"score={score}", **fields)


class Fixed(BaseRetriever):
    """Gives what it holds, and notes how it was called."""

    documents: list[Document]
    asked: list[dict[str, Any]]

    def _get_relevant_documents(self, query: str, *, run_manager: Any, **kwargs: Any) -> list[Document]:
        self.asked.append(kwargs)
        return self.documents

    async def _aget_relevant_documents(self, query: str, *, run_manager: Any, **kwargs: Any) -> list[Document]:
        self.asked.append({"async": True, **kwargs})
        return self.documents


def over(reranker: Any, documents: list[Document], **settings: Any) -> MMRHRetriever:
    return MMRHRetriever(base_retriever=Fixed(documents=documents, asked=[]), reranker=reranker, **settings)
