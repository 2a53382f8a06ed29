"""What each token of a question looks at on one page."""

from __future__ import annotations

from dataclasses import dataclass

from mmrh_retriever.encoding.engine import Attention, Engine, Window
from mmrh_retriever.errors import PageError
from mmrh_retriever.types import FloatArray, Page, PatchGrid, ScoredPage, TokenSpan


@dataclass(frozen=True, slots=True, eq=False)
class QuestionAttention:
    """The attention that single tokens of a question pay the visual tokens of one page.

    ``scores`` is ``(question tokens, visual tokens)`` float32: the mean over the selected heads of the attention of
    one question token, minus the null question's (the same for all). The mean over the question's tokens is the
    page's :attr:`ScoredPage.token_scores`. ``tokens`` are the tokens' texts, with the question's label if that counts;
    a character that several tokens share reads as a replacement character.
    """

    scored: ScoredPage
    tokens: tuple[str, ...]
    scores: FloatArray
    grid: PatchGrid

    @property
    def page(self) -> Page:
        """The page looked at."""
        return self.scored.page

    def of_token(self, place: int) -> ScoredPage:
        """The page as one of the question's tokens sees it, for a heat map; its score is that token's sum."""
        scores = self.scores[place]
        return ScoredPage(
            page=self.page,
            score=float(scores.sum(dtype="float64")),
            rank=self.scored.rank,
            position=self.scored.position,
            token_scores=scores,
            grid=self.grid,
        )


def question_attention(
    engine: Engine, window: Window, question: str, scored: ScoredPage, null: Attention | None
) -> QuestionAttention:
    """Ask one question, and keep what each of its tokens pays one page of a window.

    Args:
        engine: the engine that encoded the window.
        window: the window that holds the page.
        question: the text.
        scored: the page, with its place in the caller's list.
        null: the null question's attention on the window, with tokens; ``None`` leaves the attention uncalibrated.

    Raises:
        PageError: the model didn't see the page's image.
        QuestionError: an empty question.
        ContextOverflowError: a question too long.
    """
    place = window.places[window.members.index(scored.position)]
    if place.grid is None:
        raise PageError(
            f"{scored.page.name} was read as text: no token of it has a place on the page. Give the page an image and "
            "the model a vision tower.",
            source=scored.page.doc_id,
            page=scored.page.index,
        )
    laid = engine.prompter.lay_question(question)
    rows = range(laid.scored[0].start, laid.scored[0].stop)
    laid.scored = [TokenSpan(row, row + 1) for row in rows]
    paid = engine.ask(window, [laid], tokens=True).tokens
    if paid is None:
        raise PageError("The engine gave no attention on single tokens; it was asked for it.")
    if null is not None and null.tokens is not None:
        paid = paid - null.tokens[0]
    texts = tuple(str(engine.prompter.tokenizer.decode([laid.ids[row]])) for row in rows)
    return QuestionAttention(scored, texts, paid[:, list(place.visual)].numpy(), place.grid)
