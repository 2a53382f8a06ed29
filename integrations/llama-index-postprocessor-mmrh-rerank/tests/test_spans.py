"""A postprocessor's ranking is a span, from a thread too."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry import trace
from tests.ranking_stub import StubReranker
from tests.recorded_spans import documents_of, recorded_spans

from llama_index.postprocessor.mmrh_rerank import MMRHRerank
from tests.nodes import QUESTION, node


def test_a_ranking_is_a_span_below_the_callers(reranker: StubReranker, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = recorded_spans(monkeypatch)
    component = MMRHRerank(reranker=reranker, top_n=1)
    with trace.get_tracer("test").start_as_current_span("query"):
        (best,) = asyncio.run(component.apostprocess_nodes([node(0.25), node(0.5)], query_str=QUESTION))
    span, query = spans.get_finished_spans()
    assert (span.name, query.name) == ("mmrh.rank", "query")
    assert span.parent is not None
    assert span.parent.span_id == query.context.span_id
    assert span.attributes["reranker.query"] == QUESTION
    assert len(documents_of(span, "input")) == 2
    assert [one["score"] for one in documents_of(span, "output")] == [best.score]
