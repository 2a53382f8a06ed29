"""A compressor's ranking is a span, below the caller's."""

from __future__ import annotations

import pytest
from langchain_core.documents import Document
from tests.ranking_stub import StubReranker
from tests.recorded_spans import documents_of, recorded_spans

from langchain_mmrh import MMRHRerank


def test_a_ranking_is_a_span(reranker: StubReranker, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = recorded_spans(monkeypatch)
    documents = [Document(f"score={score}", id=str(score)) for score in (0.25, 0.5)]
    (best,) = MMRHRerank(reranker=reranker, top_n=1).compress_documents(documents, "revenue?")
    (span,) = spans.get_finished_spans()
    assert (span.attributes["openinference.span.kind"], span.attributes["reranker.query"]) == ("RERANKER", "revenue?")
    assert [one["content"] for one in documents_of(span, "input")] == ["score=0.25", "score=0.5"]
    (ranked,) = documents_of(span, "output")
    assert (ranked["content"], ranked["score"]) == (best.page_content, best.metadata["relevance_score"])
