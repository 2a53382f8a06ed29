"""A queue in front of the one model: questions about the same pages that arrive together run in one pass.

A pass over pages costs about as much for a few questions as for one, and each gets the scores that it would get alone.
A question waits a few milliseconds for others, or as long as the model is busy. One that nobody waits for any more is
taken out of the queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

from PIL import Image

from mmrh_retriever.errors import MMRHError
from mmrh_retriever.images import open_image
from mmrh_retriever.ranking.reranker import Reranker
from mmrh_retriever.types import ImageData, Page, ScoredPage

Rankings = list[list[ScoredPage]]


@dataclass(eq=False, slots=True)
class _Asked:
    """Questions that wait for their pages' ranking."""

    key: Hashable
    pages: Sequence[Page]
    questions: Sequence[str]
    with_tokens: bool
    answer: asyncio.Future[Rankings]
    since: float


@dataclass(frozen=True, slots=True, eq=False)
class _WantedImage:
    """An image that is drawn only as long as somebody waits for it: an :class:`~mmrh_retriever.types.ImageSource`."""

    draw: Callable[[], Image.Image]
    wanted: Callable[[], bool]
    pixels_key: bytes | None

    def load(self) -> Image.Image:
        """The image; :class:`NobodyWaitsError` if all who asked have gone."""
        if not self.wanted():
            raise NobodyWaitsError("Everybody who asked has gone. Expected somebody to wait; ask again.")
        return self.draw()


class NobodyWaitsError(MMRHError):
    """A pass that is given up in its middle, as nobody waits for it."""


@dataclass(eq=False)
class Joining:
    """The queue.

    Args:
        window: seconds that a question waits for others.
        most: questions of one pass; a request that has more runs alone.
        count_pass: called with the number of requests and of questions of each pass.
    """

    window: float
    most: int
    count_pass: Callable[[int, int], None] = lambda requests, questions: None
    _waiting: list[_Asked] = field(default_factory=list)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "mmrh-model"))

    def __len__(self) -> int:
        """Requests that wait for the model."""
        return len(self._waiting)

    async def rank(
        self, key: Hashable, pages: Sequence[Page], questions: Sequence[str], *, with_tokens: bool = False
    ) -> Rankings:
        """One ranking of the pages per question, best first, as :meth:`Reranker.rank_many` gives them.

        Requests with equal keys have the same pages in the same order. Errors are those of the reranker.
        """
        loop = asyncio.get_running_loop()
        asked = _Asked(key, pages, questions, with_tokens, loop.create_future(), loop.time())
        self._waiting.append(asked)
        self._arrived.set()
        try:
            return await asked.answer
        finally:
            if asked in self._waiting:
                self._waiting.remove(asked)

    async def run(self, reranker: Reranker) -> None:
        """Answer what is asked, until cancelled; a pass that runs then is finished first."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            if not self._waiting:
                self._arrived.clear()
                continue
            wait = self._waiting[0].since + self.window - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            if group := self._next_group():
                passing = loop.run_in_executor(self._thread, self._ranked, reranker, group)
                try:
                    found = await asyncio.shield(passing)
                except asyncio.CancelledError:
                    with contextlib.suppress(Exception):
                        _give(group, await passing)
                    raise
                _give(group, found)

    def close(self) -> None:
        """Let the model's thread end."""
        self._thread.shutdown()

    def _next_group(self) -> list[_Asked]:
        """The request that waits longest and those that join it, taken out of the queue."""
        if not self._waiting:
            return []
        group: list[_Asked] = []
        questions = 0
        for asked in [one for one in self._waiting if one.key == self._waiting[0].key]:
            questions += len(asked.questions)
            if group and questions > self.most:
                break
            group.append(asked)
        self._waiting = [asked for asked in self._waiting if asked not in group]
        return group

    def _ranked(self, reranker: Reranker, group: list[_Asked]) -> list[Rankings | Exception]:
        """What each request of a group gets. One request's bad question does not fail the others."""
        try:
            return self._pass(reranker, group)
        except Exception as error:  # noqa: BLE001 - whoever asked is told
            if len(group) == 1 or not isinstance(error, MMRHError):
                return [error] * len(group)
            return [found for asked in group for found in self._ranked(reranker, [asked])]
        except BaseException as error:  # noqa: BLE001 - such as a panic of compiled code: the queue goes on
            failure = RuntimeError(f"The pass ended with {type(error).__name__}.")
            failure.__cause__ = error
            return [failure] * len(group)

    def _pass(self, reranker: Reranker, group: list[_Asked]) -> list[Rankings | Exception]:
        rows = {question: row for row, question in enumerate(dict.fromkeys(q for one in group for q in one.questions))}
        self.count_pass(len(group), len(rows))

        def wanted() -> bool:
            return not all(asked.answer.cancelled() for asked in group)

        pages = [_while_wanted(page, wanted) for page in group[0].pages]
        with_tokens = any(asked.with_tokens for asked in group)
        found = reranker.rank_many(list(rows), pages, with_tokens=with_tokens)
        return [[_own(found[rows[question]], asked.pages) for question in asked.questions] for asked in group]


def _own(ranking: list[ScoredPage], pages: Sequence[Page]) -> list[ScoredPage]:
    """A ranking of equal pages as one of these."""
    return [replace(scored, page=pages[scored.position]) for scored in ranking]


def _while_wanted(page: Page, wanted: Callable[[], bool]) -> Page:
    if isinstance(page.image, bytes):
        key = b"served image " + hashlib.sha256(page.image).digest()
        return replace(page, image=_WantedImage(partial(open_image, page.image, page.name, page.error), wanted, key))
    if page.image is None or isinstance(page.image, ImageData):
        return page
    return replace(page, image=_WantedImage(page.image.load, wanted, page.pixels_key))


def _give(group: list[_Asked], found: list[Rankings | Exception]) -> None:
    for asked, answer in zip(group, found, strict=True):
        if asked.answer.done():
            continue
        if isinstance(answer, Exception):
            asked.answer.set_exception(answer)
        else:
            asked.answer.set_result(answer)
