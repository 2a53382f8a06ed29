"""Questions about the same pages share a pass, and each gets what it would get alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")

from PIL import Image

from mmrh_retriever import Page, PageStore, QuestionError, Reranker
from mmrh_retriever.serving.joining import Joining
from tests.serving.held_model import HeldModel

PAGES = [Page(text=text) for text in ("Revenue rose by 5 percent.", "The cat sleeps.", "There are two doors.")]
QUESTIONS = ["How did revenue change?", "Who sleeps?", "How many doors are there?", "What is green?"]


@asynccontextmanager
async def running(reranker: Reranker, **settings: Any) -> AsyncIterator[Joining]:
    joining = Joining(**({"window": 0.0, "most": 32} | settings))
    task = asyncio.create_task(joining.run(reranker))
    yield joining
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    joining.close()


@pytest.mark.asyncio
async def test_questions_that_wait_share_a_pass_and_score_as_alone(bundled: Reranker) -> None:
    reranker = bundled.with_store(PageStore())
    alone = [reranker.rank(question, PAGES) for question in QUESTIONS]
    model = HeldModel(reranker, held=True)
    counted: list[tuple[int, int]] = []
    async with running(reranker, count_pass=lambda *counts: counted.append(counts)) as joining:
        first = asyncio.create_task(joining.rank("other", PAGES[:1], ["Why?"]))
        await model.has_begun()
        copies = [Page(text=page.text) for page in PAGES]
        asked = [asyncio.create_task(joining.rank("key", PAGES, [question])) for question in QUESTIONS]
        asked.append(asyncio.create_task(joining.rank("key", copies, QUESTIONS[:2])))
        await asyncio.sleep(0)
        model.open.set()
        await first
        found = await asyncio.gather(*asked)
    assert model.passes == [["Why?"], QUESTIONS]
    assert counted == [(1, 1), (5, 4)]
    largest = 0.0
    for (ranking,), expected in zip(found, alone, strict=False):
        assert [scored.position for scored in ranking] == [scored.position for scored in expected]
        for one, other in zip(ranking, expected, strict=True):
            largest = max(largest, abs(one.score - other.score))
    print(f"largest difference to single questions: {largest:.1e}")
    assert largest < 1e-6
    assert all(scored.page is copies[scored.position] for ranking in found[-1] for scored in ranking)


@pytest.mark.asyncio
async def test_questions_that_come_within_the_window_share_a_pass(bundled: Reranker) -> None:
    reranker = bundled.with_store(PageStore())
    model = HeldModel(reranker)
    async with running(reranker, window=0.3) as joining:
        asked = [asyncio.create_task(joining.rank("key", PAGES, [QUESTIONS[0]]))]
        await asyncio.sleep(0.05)
        asked.append(asyncio.create_task(joining.rank("key", PAGES, [QUESTIONS[1]], with_tokens=True)))
        (plain,), (detailed,) = await asyncio.gather(*asked)
    assert model.passes == [QUESTIONS[:2]]
    assert [scored.page for scored in plain] != [scored.page for scored in detailed]


@pytest.mark.asyncio
async def test_a_pass_has_as_many_questions_as_allowed_unless_one_request_has_more(bundled: Reranker) -> None:
    reranker = bundled.with_store(PageStore())
    model = HeldModel(reranker)
    async with running(reranker, most=2, window=0.05) as joining:
        asked = [joining.rank("key", PAGES, [question]) for question in QUESTIONS[:3]]
        await asyncio.gather(*asked, joining.rank("key", PAGES, QUESTIONS))
    assert model.passes == [QUESTIONS[:2], QUESTIONS[2:3], QUESTIONS]


@pytest.mark.asyncio
async def test_a_bad_question_fails_alone(bundled: Reranker) -> None:
    reranker = bundled.with_store(PageStore())
    async with running(reranker, window=0.05) as joining:
        good, bad = await asyncio.gather(
            joining.rank("key", PAGES, [QUESTIONS[0]]),
            joining.rank("key", PAGES, ["word " * 100_000]),
            return_exceptions=True,
        )
        assert isinstance(bad, QuestionError)
        assert not isinstance(good, BaseException)
        assert good[0][0].position == 0
        assert len(await joining.rank("key", PAGES, [QUESTIONS[1]])) == 1


@pytest.mark.asyncio
async def test_a_pass_that_panics_does_not_end_the_queue(bundled: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        pass

    def panics(*_: Any, **__: Any) -> None:
        raise Panic

    reranker = bundled.with_store(PageStore())
    async with running(reranker) as joining:
        with monkeypatch.context() as broken:
            broken.setattr(reranker, "rank_many", panics)
            with pytest.raises(RuntimeError, match="Panic"):
                await joining.rank("key", PAGES, [QUESTIONS[0]])
        assert len(await asyncio.wait_for(joining.rank("key", PAGES, [QUESTIONS[1]]), 60)) == 1


@dataclass(eq=False)
class WatchedImage:
    """An image that can hold whoever draws it, and counts how often it was drawn."""

    drawn: list[int]
    number: int
    held: threading.Event | None = None
    begun: threading.Event = field(default_factory=threading.Event)

    def load(self) -> Image.Image:
        self.drawn.append(self.number)
        self.begun.set()
        if self.held is not None:
            assert self.held.wait(60)
        return Image.new("RGB", (64, 64), (self.number, 99, 99))


@pytest.mark.asyncio
async def test_a_pass_that_nobody_waits_for_is_given_up(bundled: Reranker) -> None:
    held = threading.Event()
    drawn: list[int] = []
    images = [WatchedImage(drawn, 1, held), *(WatchedImage(drawn, number) for number in range(2, 6))]
    pages = [Page(image=image, size=(64.0, 64.0), index=number) for number, image in enumerate(images)]
    async with running(bundled.with_store(PageStore(), vision_memory=0)) as joining:
        asked = asyncio.create_task(joining.rank("key", pages, ["What?"]))
        assert await asyncio.to_thread(images[0].begun.wait, 60)
        asked.cancel()
        with suppress(asyncio.CancelledError):
            await asked
        held.set()
        ranking = await joining.rank("other", PAGES, [QUESTIONS[0]])  # the model is free again
    assert (drawn, len(ranking[0])) == ([1], 3)


@pytest.mark.asyncio
async def test_the_pass_that_runs_is_finished_at_the_end(bundled: Reranker) -> None:
    reranker = bundled.with_store(PageStore())
    model = HeldModel(reranker, held=True)
    async with running(reranker) as joining:
        asked = asyncio.create_task(joining.rank("key", PAGES, [QUESTIONS[0]]))
        await model.has_begun()
        asyncio.get_running_loop().call_later(0.2, model.open.set)
    assert len((await asked)[0]) == 3
