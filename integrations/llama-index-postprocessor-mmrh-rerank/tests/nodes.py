"""Nodes with known scores, and the events of a rerank."""

from __future__ import annotations

import base64
from typing import Any

from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.schema import ImageNode, NodeWithScore, TextNode
from tests.ranking_stub import png

QUESTION = "How did revenue change?"


def node(score: float, **fields: Any) -> NodeWithScore:
    return NodeWithScore(node=TextNode(text=f"score={score}", **fields), score=0.9)


def image_nodes(count: int) -> list[NodeWithScore]:
    return [NodeWithScore(node=ImageNode(image=base64.b64encode(png(seed)).decode())) for seed in range(count)]


def rerank_events(seen: list[Any]) -> list[Any]:
    return [event for event in seen if isinstance(event, (ReRankStartEvent, ReRankEndEvent, ExceptionEvent))]
