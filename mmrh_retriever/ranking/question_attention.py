"""What each token of a question looks at on one page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from mmrh_retriever.model.prompts import PromptSegment
from mmrh_retriever.ranking.region_scores import DEFAULT_AGGREGATE, Aggregate
from mmrh_retriever.ranking.regions import ranked_regions
from mmrh_retriever.types import FloatArray, Page, PatchGrid, ScoredPage, ScoredRegion, TokenSpan


@dataclass(frozen=True, slots=True, eq=False)
class QuestionAttention:
    """The attention that single tokens of a question pay the visual tokens of one page.

    ``scores`` is ``(question tokens, visual tokens)`` float32: the mean over the selected heads of one question
    token's attention, minus the null question's (the same for all). Its mean over the question's tokens, by their
    weights, is the page's :attr:`ScoredPage.token_scores`. ``tokens`` are the tokens' texts, with the question's label
    if that counts. A character that several tokens share reads as a replacement character.
    """

    scored: ScoredPage
    tokens: tuple[str, ...]
    scores: FloatArray
    grid: PatchGrid

    @property
    def page(self) -> Page:
        """The page looked at."""
        return self.scored.page

    def of_token(self, number: int) -> ScoredPage:
        """The page as one of the question's tokens sees it, for a heat map; its score is that token's sum."""
        scores = self.scores[number]
        return replace(self.scored, score=float(scores.sum(dtype="float64")), token_scores=scores, grid=self.grid)


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Everything that one asking of a question tells.

    ``ranking`` has all pages, best first, with their token scores. ``attention`` is the best page by token of the
    question, ``None`` if the model read that page as text.
    """

    ranking: list[ScoredPage]
    attention: QuestionAttention | None

    def regions(self, *, aggregate: Aggregate = DEFAULT_AGGREGATE, top_n: int | None = None) -> list[ScoredRegion]:
        """The layout boxes of the pages, best first over all pages; none where no page has regions.

        Raises:
            PageError: a page with regions whose image the model didn't see.
        """
        return ranked_regions(self.ranking, aggregate=aggregate, top_n=top_n)


def token_by_token(question: PromptSegment) -> PromptSegment:
    """The same question, each of whose looking tokens is a row of its own."""
    rows = [TokenSpan(row, row + 1) for span in question.scored for row in range(span.start, span.stop)]
    return replace(question, scored=rows)


def question_attention(
    question: PromptSegment, scored: ScoredPage, rows: Tensor, grid: PatchGrid | None, tokenizer: Any
) -> QuestionAttention:
    """What single tokens of a question (as :func:`token_by_token` gave it) pay one page.

    ``rows`` is ``(question tokens, visual tokens)``, calibrated.
    """
    if grid is None:
        raise scored.page.error(
            f"{scored.page.name} was read as text: none of its tokens sees a part of the page. Give the page an image "
            "and the model a vision tower."
        )
    texts = tuple(str(tokenizer.decode([question.ids[row.start]])) for row in question.scored)
    return QuestionAttention(scored, texts, rows.numpy(), grid)
