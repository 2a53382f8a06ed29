"""Spans of rankings, in the form that OpenInference gives to rerankers.

Adapters and the server open their spans here. Without OpenTelemetry's API, or where no tracer provider is set up,
nothing is recorded. ``OPENINFERENCE_HIDE_INPUTS`` and ``OPENINFERENCE_HIDE_OUTPUTS`` count as they do for
OpenInference's own instrumentation: the question is redacted and the documents are left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

import mmrh_retriever
from mmrh_retriever.types import Page

REDACTED = "__REDACTED__"
"""What OpenInference writes instead of a question that is hidden."""
_KIND = {"openinference.span.kind": "RERANKER"}
_NOT_TRACED = "suppress_instrumentation"
_QUERY, _INPUTS, _OUTPUTS = "reranker.query", "reranker.input_documents", "reranker.output_documents"


@dataclass(slots=True)
class RankingSpan:
    """What a ranking's span is to say. Methods do nothing where nothing is recorded.

    With ``content=False`` neither the question nor documents' names and texts nor what errors say is recorded; a
    document is then ``documents[0]``, by its index among those that were read.
    """

    content: bool = True
    recording: bool = False
    _positions: dict[int, int] = field(default_factory=dict)
    _inputs: dict[str, Any] = field(default_factory=dict)
    _outputs: dict[str, Any] = field(default_factory=dict)

    def read(self, pages: Iterable[Page | None]) -> None:
        """The documents' pages, in the caller's order; ``None`` for what could not be read."""
        if self.recording:
            for index, page in enumerate(pages):
                self._positions[id(page)] = index
                self._inputs |= self._document(f"{_INPUTS}.{index}", page)

    def ranked(self, scored: Iterable[tuple[Page | None, float | None]]) -> None:
        """The results, best first: pages with their scores."""
        if self.recording and not _hidden("OUTPUTS"):
            for index, (page, score) in enumerate(scored):
                self._outputs |= self._document(f"{_OUTPUTS}.{index}", page, score)

    def attributes(self, question: str, model: str, top_n: int | None) -> dict[str, Any]:
        """All attributes. Where a limit drops the first ones, the best results and the question stay."""
        asked = question if self.content and not _hidden("INPUTS") else REDACTED
        limit = {} if top_n is None else {"reranker.top_k": top_n}
        described = {"reranker.model_name": model, _QUERY: asked}
        inputs = {} if _hidden("INPUTS") else self._inputs
        return inputs | dict(reversed(self._outputs.items())) | limit | _KIND | described

    def _document(self, prefix: str, page: Page | None, score: float | None = None) -> dict[str, Any]:
        if page is None:
            return {}
        metadata = json.dumps({"page": page.number, "has_image": page.image is not None})
        position = self._positions.get(id(page), "?")
        name, text = (page.doc_id, page.text) if self.content else (f"documents[{position}]", None)
        found = {"id": name, "score": score, "content": text}
        known = {name: value for name, value in found.items() if value is not None}
        return {f"{prefix}.document.{name}": value for name, value in (known | {"metadata": metadata}).items()}


@contextmanager
def ranking_span(question: object, model: str, top_n: int | None) -> Iterator[RankingSpan]:
    """A span around the ranking for one question, below the current span. An error that leaves it is recorded.

    Args:
        question: what is asked.
        model: what to call the model.
        top_n: how many results are asked for.
    """
    with ranking_spans([question], model, top_n) as (span,):
        yield span


@contextmanager
def ranking_spans(
    questions: Sequence[object], model: str, top_n: int | None, *, content: bool = True
) -> Iterator[list[RankingSpan]]:
    """Spans side by side, one per question, around a ranking for several; ``content`` as for :class:`RankingSpan`."""
    trace = _api("trace")
    if trace is None or _api("context").get_value(_NOT_TRACED):
        yield [RankingSpan() for _ in questions]
        return
    tracer = trace.get_tracer("mmrh_retriever", mmrh_retriever.__version__)
    options = {"context": _api("context").get_current(), "attributes": _KIND, "record_exception": content}
    with ExitStack() as opened:
        spans = [
            opened.enter_context(tracer.start_as_current_span("mmrh.rank", set_status_on_exception=False, **options))
            for _ in questions
        ]
        described = [RankingSpan(content, span.is_recording()) for span in spans]
        try:
            yield described
        except Exception as error:
            for span in spans:
                said = f"{type(error).__name__}: {error}" if content else type(error).__name__
                span.set_status(trace.Status(trace.StatusCode.ERROR, said))
                span.set_attribute("error.type", type(error).__name__)
            raise
        finally:
            for question, span, one in zip(questions, spans, described, strict=True):
                if one.recording:
                    span.set_attributes(one.attributes(str(question), model, top_n))


@contextmanager
def caller_context(headers: Mapping[str, str]) -> Iterator[None]:
    """Let spans be parts of the trace that a request's headers name (``traceparent``); a current span comes first."""
    trace = _api("trace")
    if trace is None or trace.get_current_span().get_span_context().is_valid:
        yield
        return
    context = _api("context")
    token = context.attach(_api("propagate").extract(headers))
    try:
        yield
    finally:
        context.detach(token)


@cache
def _api(module: str) -> Any:
    """A module of OpenTelemetry's API; ``None`` if it is not installed."""
    try:
        return import_module(f"opentelemetry.{module}")
    except ImportError:
        return None


def _hidden(what: str) -> bool:
    return os.environ.get(f"OPENINFERENCE_HIDE_{what}", "").strip().lower() in ("true", "1")
