"""Spans of requests: parts of the caller's trace, without what documents say."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from opentelemetry.trace import StatusCode

from mmrh_retriever import Reranker
from mmrh_retriever.adapters.telemetry import REDACTED
from tests.ranking_stub import png
from tests.recorded_spans import documents_of, recorded_spans
from tests.serving.conftest import client_of, wait_until_ready

BODY = {"query": "How did revenue change?", "documents": ["Our cats sleep.", "Revenue rose by 5 percent."], "top_n": 1}
CALLER = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


def test_a_request_has_a_span_in_its_callers_trace(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = recorded_spans(monkeypatch)
    (result,) = client.post("/v1/rerank", json=BODY, headers=CALLER).json()["results"]
    (span,) = spans.get_finished_spans()
    assert f"{span.context.trace_id:032x}" in CALLER["traceparent"]
    assert (span.attributes["reranker.top_k"], span.attributes["reranker.model_name"]) == (1, "reader")
    (best,) = documents_of(span, "output")
    assert (best["id"], best["score"]) == ("documents[1]", result["relevance_score"])
    assert span.attributes["reranker.query"] == REDACTED
    assert not any(said in span.to_json() for said in ("revenue", "Revenue", "cats"))


def test_questions_on_a_file_have_spans_side_by_side(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = recorded_spans(monkeypatch)
    file = client.post("/v1/files", files={"file": ("secret.png", png())}).json()["id"]
    body = {"queries": ["revenue?", "cats?"], "files": [file]}
    assert client.post("/v1/rank", json=body, headers=CALLER).status_code == 200
    found = spans.get_finished_spans()
    assert [f"{span.parent.span_id:016x}" for span in found if span.parent] == [CALLER["traceparent"][36:52]] * 2
    assert [documents_of(span, "output")[0]["id"] for span in found] == ["documents[0]"] * 2
    assert not any("secret" in span.to_json() for span in found)


def test_what_the_model_fails_over_is_recorded(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = recorded_spans(monkeypatch)
    answer = client.post("/v1/rerank", json={"query": "revenue?", "documents": ["revenue " * 20000]})
    (span,) = spans.get_finished_spans()
    assert (answer.status_code, span.status.status_code) == (422, StatusCode.ERROR)
    assert (span.status.description, span.events) == ("PageError", ())


def test_content_is_traced_where_the_settings_say_so(bundled: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = recorded_spans(monkeypatch)
    with client_of(bundled, trace_content=True) as client:
        wait_until_ready(client)
        client.post("/v1/rerank", json=BODY)
    (span,) = spans.get_finished_spans()
    assert span.attributes["reranker.query"] == BODY["query"]
    assert documents_of(span, "output")[0]["content"] == BODY["documents"][1]
