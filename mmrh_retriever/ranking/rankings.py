"""What callers give as pages and questions, and what they get: rankings made of windows' attention."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mmrh_retriever.encoding.engine import Attention, Window
from mmrh_retriever.errors import PageError, QuestionError
from mmrh_retriever.model.loading import as_page
from mmrh_retriever.model.recording import descending, page_scores
from mmrh_retriever.types import Page, PageLike, ScoredPage


class Scores:
    """Collects windows' attention into rankings.

    ``values`` is ``(questions, pages)`` float64, NaN until a page was seen; ``finals`` marks the pages that a final
    heat decided upon.
    """

    def __init__(self, questions: int, pages: list[Page], *, with_tokens: bool) -> None:
        self.pages = pages
        self.with_tokens = with_tokens
        self.values = torch.full((questions, len(pages)), float("nan"), dtype=torch.float64)
        self.finals = torch.zeros(questions, len(pages), dtype=torch.bool)
        self.tokens: list[dict[int, tuple[Any, Any]]] = [{} for _ in range(questions)]

    def add(
        self,
        window: Window,
        attention: Attention,
        null: Attention | None,
        *,
        questions: Sequence[int] | None = None,
    ) -> None:
        """Take in what the questions (all of them, or those given: then it is their final heat) paid one window."""
        every = range(self.values.shape[0])
        asked = torch.tensor(every if questions is None else questions, dtype=torch.long)[:, None]
        self.values[asked, window.members] = page_scores(attention.mass, None if null is None else null.mass[0])
        self.finals[asked, window.members] = questions is not None
        if not self.with_tokens or attention.tokens is None:
            return
        for question, paid in zip(asked.flatten().tolist(), attention.tokens, strict=True):
            own = paid if null is None or null.tokens is None else paid - null.tokens[0]
            for member, place in zip(window.members, window.places, strict=True):
                self.tokens[question][member] = (own[list(place.visual)].numpy(), place.grid)

    def rankings(self, top_n: int | None) -> list[list[ScoredPage]]:
        """One ranking a question, best first; equals stay in the caller's order."""
        return [list(self._ranking(question, top_n)) for question in range(self.values.shape[0])]

    def _ranking(self, question: int, top_n: int | None) -> Iterator[ScoredPage]:
        values: list[float] = self.values[question].tolist()
        order = descending(self.values[question])
        finals: list[bool] = self.finals[question].tolist()
        order.sort(key=lambda place: not finals[place])  # stable
        for rank, place in enumerate(order[:top_n], start=1):
            token_scores, grid = self.tokens[question].get(place, (None, None))
            yield ScoredPage(
                page=self.pages[place],
                score=values[place],
                rank=rank,
                position=place,
                token_scores=token_scores if grid is not None else None,
                grid=grid,
            )


def as_pages(pages: Iterable[PageLike]) -> list[Page]:
    """The caller's pages as :class:`Page` objects.

    Raises:
        PageError: no pages, a single page where a list is expected, or one that can't be read.
    """
    if isinstance(pages, (str, bytes, Path, Page)) or not isinstance(pages, Iterable):
        raise PageError(
            f"Expected a list of pages, got a single {type(pages).__name__}. Put it in a list; the pages of a PDF file "
            "come from read_pdf(path)."
        )
    found = [as_page(item, place) for place, item in enumerate(pages)]
    if not found:
        raise PageError("There are no pages to rank. Give at least one.")
    return found


def as_questions(questions: Iterable[str]) -> list[str]:
    """The caller's questions as a list.

    Raises:
        QuestionError: a single text where a list is expected.
    """
    if isinstance(questions, str) or not isinstance(questions, Iterable):
        raise QuestionError(f"Expected a list of questions, got a single {type(questions).__name__}. Put it in a list.")
    return list(questions)


def page_numbers(pages: Sequence[Page]) -> list[int]:
    """The numbers that stand on the pages' labels: their own if they are one document's, else 1, 2, 3 ..."""
    own = [page.number for page in pages]
    if len({page.doc_id for page in pages}) == 1 and len(set(own)) == len(own):
        return own
    return list(range(1, len(pages) + 1))


def without_null(attention: Attention, *, calibrated: bool) -> tuple[Attention, Attention | None]:
    """What the questions paid, and what the null question paid that was asked behind them."""
    if not calibrated:
        return attention, None
    tokens = attention.tokens
    questions = Attention(attention.mass[:-1], None if tokens is None else tokens[:-1])
    return questions, Attention(attention.mass[-1:], None if tokens is None else tokens[-1:])


def shown(pages: Sequence[Page], progress: bool) -> Iterable[tuple[int, Page]]:
    """The pages with their places, and a bar on stderr if asked for."""
    bar: Iterable[tuple[int, Page]] = tqdm(
        enumerate(pages),
        total=len(pages),
        desc="pages",
        unit="page",
        disable=None if progress else True,
        leave=False,
    )
    return bar
