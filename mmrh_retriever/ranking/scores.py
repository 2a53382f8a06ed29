"""Windows' attention collected into scores, and scores into rankings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmrh_retriever.encoding.scoring import descending, page_scores
from mmrh_retriever.encoding.window import Attention, Window
from mmrh_retriever.model.prompts import PromptSegment
from mmrh_retriever.ranking.calibration import Calibration
from mmrh_retriever.ranking.hybrid import TextLayer
from mmrh_retriever.types import Candidate, FloatArray, ScoredPage


class Scores:
    """Collects what questions pay the pages of several windows.

    A question has one row of attention per ``scored`` span; its score is their mean, by their tokens' weights.
    ``values`` is ``(questions, pages)`` float64, NaN until a page was seen; ``finals`` marks the pages that a final
    round decided on, and ``first`` keeps what their own windows gave. With tokens, ``rows`` has per question and page
    index what each row pays the page's visual tokens, ``(rows, visual tokens)``.
    """

    def __init__(
        self, questions: Sequence[PromptSegment], candidates: Sequence[Candidate], *, with_tokens: bool
    ) -> None:
        self.questions = questions
        self.candidates = candidates
        self.with_tokens = with_tokens
        self._shares = [_shares(question) for question in questions]
        shape = (len(questions), len(candidates))
        self.values = torch.full(shape, float("nan"), dtype=torch.float64)
        self.first = self.values.clone()
        self.finals = torch.zeros(shape, dtype=torch.bool)
        self.rows: list[dict[int, Tensor]] = [{} for _ in questions]
        self._grids: dict[int, Any] = {}

    def add(
        self, window: Window, attention: Attention, null: Attention | None, *, finalists_of: Sequence[int] | None = None
    ) -> None:
        """Take in what all questions, or those whose finalists the window holds, paid one window.

        ``null`` is what the null question paid, which is subtracted; ``None`` leaves scores uncalibrated.
        """
        asked = range(len(self.questions)) if finalists_of is None else finalists_of
        start = 0
        for question in asked:
            stop = start + len(self.questions[question].scored)
            mass = torch.tensordot(self._shares[question], attention.mass[start:stop].double(), 1)  # (heads, pages)
            self.values[question, window.indices] = page_scores(mass, None if null is None else null.mass[0])
            self.finals[question, window.indices] = finalists_of is not None
            if finalists_of is None:
                self.first[question, window.indices] = self.values[question, window.indices]
            if self.with_tokens and attention.tokens is not None:
                paid = attention.tokens[start:stop]
                self._add_tokens(question, window, paid if null is None or null.tokens is None else paid - null.tokens)
            start = stop

    def rankings(
        self,
        top_n: int | None = None,
        *,
        texts: TextLayer | None = None,
        asked: Sequence[str] = (),
        calibration: Calibration | None = None,
    ) -> list[list[ScoredPage]]:
        """One ranking per question, best first; equals stay in the caller's order.

        With ``texts``, which are ``asked`` the same questions, scores are hybrid. With a ``calibration`` pages have a
        probability.
        """
        found = [None] * len(self.questions) if texts is None else texts.index.scores(asked)
        return [list(self._ranking(question, top_n, texts, own, calibration)) for question, own in enumerate(found)]

    def _add_tokens(self, question: int, window: Window, paid: Tensor) -> None:
        for page in window.pages:
            index = page.candidate.index
            self.rows[question][index] = paid[:, list(page.visual)]
            self._grids[index] = page.grid

    def _ranking(
        self,
        question: int,
        top_n: int | None,
        texts: TextLayer | None,
        said: FloatArray | None,
        calibration: Calibration | None,
    ) -> Iterator[ScoredPage]:
        attention: list[float] = self.values[question].tolist()
        scores = attention
        probable = None
        if calibration is not None:
            known = None if texts is None or said is None else np.where(texts.has_text, said, np.nan)
            probable = calibration.probabilities(self.values[question].numpy(), known)
        if texts is None or said is None:
            finals: list[bool] = self.finals[question].tolist()
            order = descending(self.values[question])
            order.sort(key=lambda index: not finals[index])  # stable
        else:
            joined = texts.joined(self._on_one_scale(question), said)
            scores, order = joined.tolist(), descending(torch.from_numpy(joined))
        for rank, index in enumerate(order[:top_n], start=1):
            grid = self._grids.get(index)
            rows = self.rows[question].get(index)
            yield ScoredPage(
                page=self.candidates[index].page,
                score=scores[index],
                rank=rank,
                position=index,
                token_scores=None if rows is None or grid is None else (self._shares[question].float() @ rows).numpy(),
                grid=grid,
                attention_score=attention[index],
                text_score=float(said[index]) if said is not None and texts and texts.has_text[index] else None,
                probability=None if probable is None or np.isnan(probable[index]) else float(probable[index]),
            )

    def _on_one_scale(self, question: int) -> FloatArray:
        """``(pages,)``: what the windows gave, which finalists exchange among themselves by their final round."""
        scores: FloatArray = self.first[question].numpy().copy()
        finals = self.finals[question].numpy()
        order = self.values[question].numpy()[finals].argsort()
        dealt = np.empty(len(order))
        dealt[order] = np.sort(scores[finals])
        scores[finals] = dealt
        return scores


def _shares(question: PromptSegment) -> Tensor:
    """``(rows,)`` float64: how much each row of a question counts; they sum to 1."""
    sums = torch.stack([weights.double().sum() for weights in question.looking()])
    return sums / sums.sum()
