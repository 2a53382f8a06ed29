"""Spans of rankings: what they say, what they hide, and that nothing happens without OpenTelemetry."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry import context, trace
from opentelemetry.trace import StatusCode

from mmrh_retriever import PageError, QuestionError
from mmrh_retriever.adapters import AdapterSettings, FileSettings, PageClues, telemetry
from mmrh_retriever.adapters.telemetry import REDACTED, caller_context, ranking_span, ranking_spans
from tests.ranking_stub import png, stub
from tests.recorded_spans import documents_of, recorded_spans

QUESTION = "How did revenue change?"
ITEMS = [PageClues(text="score=0.25", doc_id="a"), PageClues(text="score=0.5", doc_id="b")]
CALLER = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


def test_a_span_has_openinferences_form(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = recorded_spans(monkeypatch)
    settings = AdapterSettings(reranker=stub())
    (best,) = settings.rank_items(QUESTION, ITEMS, lambda clues: clues, top_n=1)
    (span,) = spans.get_finished_spans()
    attributes = dict(span.attributes)
    assert attributes["openinference.span.kind"] == "RERANKER"
    assert attributes["reranker.query"] == QUESTION
    assert attributes["reranker.model_name"] == settings.model_label
    assert attributes["reranker.top_k"] == 1
    read, ranked = documents_of(span, "input"), documents_of(span, "output")
    assert [(one["id"], one["content"]) for one in read] == [("a", "score=0.25"), ("b", "score=0.5")]
    assert [(one["id"], one["score"]) for one in ranked] == [("b", best.score)]
    assert json.loads(ranked[0]["metadata"]) == {"page": 1, "has_image": False}
    assert span.status.status_code is StatusCode.UNSET


def test_the_names_are_those_of_openinference() -> None:
    semconv = pytest.importorskip("openinference.semconv.trace", reason="its names come with the extra dev")
    names = semconv.RerankerAttributes
    given = telemetry.RankingSpan(recording=True)
    given.ranked([(AdapterSettings(reranker=stub()).page_source().page(ITEMS[0]), 1.0)])
    found = given.attributes(QUESTION, "m", 3)
    document = f"{names.RERANKER_OUTPUT_DOCUMENTS}.0."
    assert {name.removeprefix(document) for name in found if name.startswith(document)} == {
        semconv.DocumentAttributes.DOCUMENT_ID,
        semconv.DocumentAttributes.DOCUMENT_SCORE,
        semconv.DocumentAttributes.DOCUMENT_CONTENT,
        semconv.DocumentAttributes.DOCUMENT_METADATA,
    }
    kind = semconv.SpanAttributes.OPENINFERENCE_SPAN_KIND
    assert {name for name in found if not name.startswith(document)} == {
        kind, names.RERANKER_QUERY, names.RERANKER_MODEL_NAME, names.RERANKER_TOP_K,
    }  # fmt: skip
    assert found[kind] == semconv.OpenInferenceSpanKindValues.RERANKER.value


def test_errors_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = recorded_spans(monkeypatch)
    settings = AdapterSettings(reranker=stub())
    with pytest.raises(QuestionError):
        settings.rank_items(" ", ITEMS, lambda clues: clues)
    with pytest.raises(PageError):
        settings.rank_items(QUESTION, [PageClues(image_path="nowhere.png")], lambda clues: clues)
    empty, unread = spans.get_finished_spans()
    assert [span.status.status_code for span in (empty, unread)] == [StatusCode.ERROR] * 2
    assert [span.attributes["error.type"] for span in (empty, unread)] == ["QuestionError", "PageError"]
    assert "nowhere.png" in unread.events[0].attributes["exception.message"]


def test_an_unreadable_document_keeps_the_others_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = recorded_spans(monkeypatch)
    settings = AdapterSettings(reranker=stub(), on_error="last")
    settings.rank_items(QUESTION, [PageClues(image_path="nowhere.png"), *ITEMS], lambda clues: clues)
    (span,) = spans.get_finished_spans()
    assert "reranker.input_documents.0.document.metadata" not in span.attributes
    assert span.attributes["reranker.input_documents.2.document.id"] == "b"


def test_files_are_ranked_in_a_span(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spans = recorded_spans(monkeypatch)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png())
    FileSettings(reranker=stub(), files=(str(tmp_path),)).rank_files(QUESTION)
    (span,) = spans.get_finished_spans()
    assert len(documents_of(span, "input")) == len(documents_of(span, "output")) == 2
    assert json.loads(documents_of(span, "output")[0]["metadata"])["has_image"] is True


def test_openinferences_settings_hide_content(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = recorded_spans(monkeypatch)
    settings = AdapterSettings(reranker=stub())
    for hidden in ("INPUTS", "OUTPUTS"):
        with monkeypatch.context() as patch:
            patch.setenv(f"OPENINFERENCE_HIDE_{hidden}", "TRUE")
            settings.rank_items(QUESTION, ITEMS, lambda clues: clues)
    inputs, outputs = spans.get_finished_spans()
    assert inputs.attributes["reranker.query"] == REDACTED
    assert (len(documents_of(inputs, "input")), len(documents_of(inputs, "output"))) == (0, 2)
    assert outputs.attributes["reranker.query"] == QUESTION
    assert (len(documents_of(outputs, "input")), len(documents_of(outputs, "output"))) == (2, 0)


def test_without_content_positions_and_scores_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = recorded_spans(monkeypatch)
    page = AdapterSettings(reranker=stub()).page_source().page(ITEMS[0])
    with pytest.raises(ValueError), ranking_spans([QUESTION], "m", None, content=False) as (given,):  # noqa: PT012
        given.read([page])
        given.ranked([(page, 0.5)])
        raise ValueError(f"{page.text} can't be ranked")
    (span,) = spans.get_finished_spans()
    assert documents_of(span, "output") == [
        {"id": "documents[0]", "score": 0.5, "metadata": '{"page": 1, "has_image": false}'}
    ]
    assert (span.events, span.status.description) == ((), "ValueError")
    assert not any(said in span.to_json() for said in (QUESTION, "score=0.25"))


def test_under_a_limit_the_question_and_the_best_results_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = recorded_spans(monkeypatch, most_attributes=12)
    items = [PageClues(text=f"score={number / 8}", doc_id=str(number)) for number in range(8)]
    AdapterSettings(reranker=stub()).rank_items(QUESTION, items, lambda clues: clues)
    (span,) = spans.get_finished_spans()
    assert span.attributes["reranker.query"] == QUESTION
    assert span.attributes["reranker.output_documents.0.document.id"] == "7"
    assert not documents_of(span, "input")


def test_a_span_belongs_to_the_callers_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = recorded_spans(monkeypatch)
    with caller_context(CALLER), ranking_span(QUESTION, "m", None), caller_context({"traceparent": "00-1-2-00"}):
        assert trace.get_current_span().get_span_context().is_valid
    (span,) = spans.get_finished_spans()
    assert f"{span.context.trace_id:032x}" in CALLER["traceparent"]
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" in CALLER["traceparent"]
    assert not trace.get_current_span().get_span_context().is_valid


def test_suppressed_code_is_not_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = recorded_spans(monkeypatch)
    token = context.attach(context.set_value("suppress_instrumentation", True))
    try:
        with ranking_span(QUESTION, "m", None) as span:
            assert not span.recording
    finally:
        context.detach(token)
    assert not spans.get_finished_spans()


def test_without_a_provider_nothing_is_recorded() -> None:
    with ranking_span(QUESTION, "m", None) as span:
        span.read(pytest.fail("documents are gone through") for _ in range(1))  # type: ignore[func-returns-value]
        assert not span.recording


def test_opentelemetry_need_not_be_there() -> None:
    code = """
import sys
sys.modules["opentelemetry"] = None
from mmrh_retriever.adapters.telemetry import caller_context, ranking_span
with caller_context({}), ranking_span("?", "m", 1) as span:
    sys.exit(span.recording)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
