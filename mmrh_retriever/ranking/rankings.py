"""The ranking loop: questions go through windows, then through a final round, and come out as scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmrh_retriever.encoding.engine import Engine
from mmrh_retriever.encoding.window import Window
from mmrh_retriever.model.prompts import PromptSegment
from mmrh_retriever.ranking.final_round import run_final_round
from mmrh_retriever.ranking.scores import Scores
from mmrh_retriever.types import Candidate


def score_windows(
    engine: Engine,
    windows: Iterable[Window],
    candidates: Sequence[Candidate],
    questions: Sequence[PromptSegment],
    *,
    null: PromptSegment | None,
    final_round: int,
    with_tokens: bool,
) -> Scores:
    """Ask questions of windows, one window at a time, and run a final round over several.

    Each window is asked when it comes; whoever gives them may drop its keys afterwards. Without a null question scores
    are uncalibrated.
    """
    scores = Scores(questions, candidates, with_tokens=with_tokens)
    if not questions:
        return scores
    asked: list[Window] = []
    for window in windows:
        scores.add(window, *engine.ask_with_null(window, questions, null, tokens=with_tokens))
        asked.append(window)
    if final_round and len(asked) > 1:
        run_final_round(scores, engine, asked, null=null, size=final_round)
    return scores
