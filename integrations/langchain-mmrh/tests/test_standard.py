"""LangChain's own standard tests for retrievers, unmodified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_tests.integration_tests import RetrieversIntegrationTests
from tests.ranking_stub import real

from langchain_mmrh import MMRHRetriever
from tests import factories

REPORT = Path(__file__).parents[3] / "examples" / "sample_report.pdf"


class _Standard(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return MMRHRetriever

    @property
    def retriever_query_example(self) -> str:
        return "How did revenue change?"


class TestOverARetriever(_Standard):
    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        found = [Document("", metadata={"image": factories.page_image(seed)}) for seed in range(4)]
        return {"base_retriever": RunnableLambda(lambda _: found), "reranker": real()}


class TestOverFiles(_Standard):
    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"files": [REPORT], "reranker": real()}


class TestOverFilesShortenedByWords(_Standard):
    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        pytest.importorskip("bm25s")
        return {"files": [REPORT], "first_stage": "bm25", "candidates": 3, "reranker": real()}
