"""Events and callbacks in pairs, async beside a free event loop, threads."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.instrumentation.span_handlers.null import NullSpanHandler
from mmrh_retriever import QuestionError
from tests.ranking_stub import StubReranker, real

from llama_index.postprocessor.mmrh_rerank import MMRHRerank
from tests.nodes import QUESTION, image_nodes, node, rerank_events

# Events


def test_events_start_and_end(reranker: StubReranker, seen: list[Any]) -> None:
    nodes = [node(0.25), node(0.5)]
    found = MMRHRerank(reranker=reranker, top_n=1).postprocess_nodes(nodes, query_str=QUESTION)
    start, end = rerank_events(seen)
    assert isinstance(start, ReRankStartEvent)
    assert start.query.query_str == QUESTION
    assert (start.top_n, start.model_name) == (1, "Qwen3VLForConditionalGeneration")
    assert [it.node_id for it in start.nodes] == [it.node_id for it in nodes]
    assert isinstance(end, ReRankEndEvent)
    assert end.nodes == found


class Spans(NullSpanHandler):
    """Notes the spans that begin."""

    _begun: list[str] = PrivateAttr(default_factory=list)

    def span_enter(self, id_: str, *_: Any, **__: Any) -> None:
        self._begun.append(id_.partition("-")[0])


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_span_is_recorded(reranker: StubReranker, mode: str, seen: list[Any]) -> None:
    spans, root = Spans(), get_dispatcher()
    root.add_span_handler(spans)
    component = MMRHRerank(reranker=reranker)
    try:
        if mode == "sync":
            component.postprocess_nodes([node(0.5)], query_str=QUESTION)
        else:
            asyncio.run(component.apostprocess_nodes([node(0.5)], query_str=QUESTION))
    finally:
        root.span_handlers.remove(spans)
    method = "_postprocess_nodes" if mode == "sync" else "_apostprocess_nodes"
    assert spans._begun == [f"MMRHRerank.{method}"]
    assert {event.span_id.partition("-")[0] for event in rerank_events(seen)} == {f"MMRHRerank.{method}"}


def test_events_on_empty_input(reranker: StubReranker, seen: list[Any]) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    component = MMRHRerank(reranker=reranker, callback_manager=CallbackManager([debug]))
    assert component.postprocess_nodes([], query_str=QUESTION) == []
    assert component.postprocess_nodes([]) == []
    assert [type(event) for event in rerank_events(seen)] == [ReRankStartEvent, ReRankEndEvent] * 2
    assert rerank_events(seen)[0].top_n == 0
    assert len(debug.get_event_pairs(CBEventType.RERANKING)) == 2
    assert reranker.calls == []


def test_events_on_failure(reranker: StubReranker, seen: list[Any]) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    component = MMRHRerank(reranker=reranker, callback_manager=CallbackManager([debug]))
    with pytest.raises(QuestionError):
        component.postprocess_nodes([node(0.5)])
    kinds = [type(event) for event in rerank_events(seen)]
    assert kinds[0] is ReRankStartEvent
    assert kinds[-1] is ReRankEndEvent
    assert ExceptionEvent in kinds
    (pair,) = debug.get_event_pairs(CBEventType.RERANKING)
    assert isinstance(pair[1].payload[EventPayload.EXCEPTION], QuestionError)


def test_callbacks_and_a_manager_set_later(reranker: StubReranker) -> None:
    component = MMRHRerank(reranker=reranker)
    debug = LlamaDebugHandler(print_trace_on_end=False)
    component.callback_manager = CallbackManager([debug])
    found = component.postprocess_nodes([node(0.25), node(0.5)], query_str=QUESTION)
    ((start, end),) = debug.get_event_pairs(CBEventType.RERANKING)
    assert start.payload[EventPayload.QUERY_STR] == QUESTION
    assert start.payload[EventPayload.TOP_K] == 2
    assert start.payload[EventPayload.MODEL_NAME] == "Qwen3VLForConditionalGeneration"
    assert len(start.payload[EventPayload.NODES]) == 2
    assert end.payload[EventPayload.NODES] == found


# Async and threads


async def wait_beside(work: Any) -> tuple[Any, int]:
    """The result of something awaited, and how often the loop turned meanwhile."""
    turns = 0
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.sleep(0.005)
        turns += 1
    return task.result(), turns


def test_async_leaves_the_loop_free(reranker: StubReranker, seen: list[Any]) -> None:
    component = MMRHRerank(reranker=reranker)
    nodes = [node(0.25), node(0.5)]
    rank = reranker.rank
    reranker.rank = lambda *args, **more: (time.sleep(0.2), rank(*args, **more))[1]  # type: ignore[method-assign]
    found, turns = asyncio.run(wait_beside(component.apostprocess_nodes(nodes, query_str=QUESTION)))
    assert turns > 5
    assert threading.main_thread().name not in reranker.threads
    assert [type(event) for event in rerank_events(seen)] == [ReRankStartEvent, ReRankEndEvent]
    assert found == component.postprocess_nodes(nodes, query_str=QUESTION)
    assert len(asyncio.run(component.arerank(nodes, QUESTION, top_n=1))) == 1


def test_eight_threads_give_the_scores_of_one() -> None:
    component = MMRHRerank(reranker=real())
    nodes = image_nodes(3)

    def ask(number: int) -> list[tuple[str, float | None]]:
        return [(it.node_id, it.score) for it in component.rerank(nodes, f"{QUESTION} {number}")]

    alone = [ask(number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == alone
