"""For the tests of adapters: a reranker whose scores are known in advance, on a tiny real model, and a picture file."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from mmrh_retriever import Page, Region, Reranker, ScoredPage, ScoredRegion
from mmrh_retriever.ranking.inputs import as_pages
from tests import factories


class StubReranker(Reranker):
    """A text ``"... score=0.7"`` scores 0.7, a picture its mean brightness from 0 to 1; calls are kept in ``calls``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.calls: list[list[Page]] = []
        self.threads: set[str] = set()

    def rank(self, question: str, pages: Iterable[Any], *, top_n: int | None = None, **_: Any) -> list[ScoredPage]:
        listed = as_pages(pages)
        self.calls.append(listed)
        self.threads.add(threading.current_thread().name)
        scores = [score_of(page) for page in listed]
        order = sorted(range(len(listed)), key=lambda index: -scores[index])
        ranked = [ScoredPage(listed[index], scores[index], rank, index) for rank, index in enumerate(order, start=1)]
        return ranked[:top_n]

    def rank_regions(
        self, question: str, pages: Iterable[Any], *, top_n: int | None = None, **_: Any
    ) -> list[ScoredRegion]:
        found = []
        for page in as_pages(pages):
            regions = page.regions or (Region((1, 2, 3, 4), "text", "a"), Region((5, 6, 7, 8), "table", "b"))
            found += [ScoredRegion(page, region, 1.0 / rank, 0) for rank, region in enumerate(regions, start=1)]
        return sorted(found, key=lambda region: -region.score)[:top_n]


def score_of(page: Page) -> float:
    if page.image is None:
        return float((page.text or "").rpartition("score=")[2])
    grey = page.pixels().convert("L")
    return sum(value * count for value, count in enumerate(grey.histogram())) / (255 * grey.width * grey.height)


def png(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    factories.page_image(seed).save(stream, "PNG")
    return stream.getvalue()


@lru_cache(maxsize=1)
def tiny() -> factories.Tiny:
    return factories.tiny("qwen3_vl")


def stub() -> StubReranker:
    return StubReranker(tiny().model, (tiny().tokenizer, tiny().image_processor), heads="all")


def real(**options: Any) -> Reranker:
    return Reranker(tiny().model, (tiny().tokenizer, tiny().image_processor), heads="all", **options)
