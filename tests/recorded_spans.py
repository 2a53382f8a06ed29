"""OpenTelemetry's SDK, which keeps the spans of a test in memory."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk.trace", reason="spans need opentelemetry-sdk (extra dev)")

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


def recorded_spans(monkeypatch: pytest.MonkeyPatch, most_attributes: int = 1000) -> InMemorySpanExporter:
    """Where the spans of this test go."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(span_limits=SpanLimits(max_span_attributes=most_attributes), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    for what in ("INPUTS", "OUTPUTS"):
        monkeypatch.delenv(f"OPENINFERENCE_HIDE_{what}", raising=False)
    return exporter


def documents_of(span: ReadableSpan, side: str) -> list[dict[str, Any]]:
    """The documents of one side of a span, ``input`` or ``output``, each by its attributes' last names."""
    found: dict[int, dict[str, Any]] = {}
    for name, value in (span.attributes or {}).items():
        if name.startswith(f"reranker.{side}_documents."):
            index, _, attribute = name.removeprefix(f"reranker.{side}_documents.").partition(".document.")
            found.setdefault(int(index), {})[attribute] = value
    return [found[index] for index in sorted(found)]
