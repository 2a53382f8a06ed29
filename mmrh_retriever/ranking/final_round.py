"""The final round: where pages take several windows, the windows' best pages are compared once more, in one window.

Attention is shared out within a window, so a score says how a page did among its window's pages. Li et al. 2026 (arXiv
2605.27243) compare raw scores of several windows as they are. A final round compares the best of all under one softmax.
It costs one more window; with encoded independent pages, only the prompt prefix and the question's tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from mmrh_retriever.encoding.engine import Engine
from mmrh_retriever.encoding.scoring import descending
from mmrh_retriever.encoding.window import Window
from mmrh_retriever.model.prompts import PromptSegment
from mmrh_retriever.ranking.scores import Scores


def finalists(values: Tensor, windows: Sequence[Window], size: int, room: int) -> list[int]:
    """The pages that one question's final round takes, as indices in the caller's order.

    All windows' best pages come first, then their second best, and so on; among equals the higher score. ``values`` is
    ``(pages,)``. At most ``size`` pages of ``room`` tokens in all are taken.
    """
    entries: list[tuple[int, float, int, int]] = []  # rank in its window, minus the score, index, tokens
    for window in windows:
        own = values[window.indices]
        for rank, number in enumerate(descending(own)):
            page = window.pages[number]
            entries.append((rank, -float(own[number]), page.candidate.index, len(page.span)))
    chosen: list[int] = []
    used = 0
    for _, _, index, tokens in sorted(entries):
        if len(chosen) == size or used + tokens > room:
            break
        chosen.append(index)
        used += tokens
    return sorted(chosen)


def run_final_round(
    scores: Scores, engine: Engine, windows: Sequence[Window], *, null: PromptSegment | None, size: int
) -> None:
    """Run each question's final round; its scores take the place of the windows' own.

    Questions with the same finalists are asked together.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for number in range(len(scores.questions)):
        chosen = finalists(scores.values[number], windows, min(size, engine.window_pages), engine.room)
        if len(chosen) > 1:
            groups.setdefault(tuple(chosen), []).append(number)
    for indices, numbers in groups.items():
        questions = [scores.questions[number] for number in numbers]
        for window in _windows_of(scores, engine, windows, indices):
            attention, null_attention = engine.ask_with_null(window, questions, null, tokens=scores.with_tokens)
            scores.add(window, attention, null_attention, finalists_of=numbers)
            window.drop()


def _windows_of(scores: Scores, engine: Engine, windows: Sequence[Window], indices: Sequence[int]) -> Iterable[Window]:
    """The finalists in one window: copied, if the windows before hold what independent pages need, or run again."""
    held = {index for window in windows if window.holds_keys for index in window.indices}
    if engine.independent and held.issuperset(indices):
        return [engine.gather(windows, indices)]
    return engine.windows(scores.candidates[index] for index in indices)
