"""A final heat: where pages take several windows, the windows' best pages are compared once more, in one window.

Attention is shared out within a window, so that a score says how a page did among its window's pages. Raw scores of
several windows are compared as they are by Li et al. 2026 (arXiv 2605.27243); a final heat compares the best of all
under one softmax, for the price of one more window; of encoded independent pages, for that of the prompt's head and the
question's tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from mmrh_retriever.encoding.engine import Engine, Window
from mmrh_retriever.errors import PageError
from mmrh_retriever.model.prompts import LaidPiece
from mmrh_retriever.model.recording import descending
from mmrh_retriever.ranking.rankings import Scores, without_null
from mmrh_retriever.types import Page


@dataclass(frozen=True, slots=True)
class Heat:
    """What a final heat is run over: the windows before it, and how many pages it takes.

    ``null`` is the null question, or nothing if scores are not calibrated.
    """

    engine: Engine
    windows: Sequence[Window]
    pages: Sequence[Page]
    numbers: Sequence[int]
    size: int
    null: Sequence[LaidPiece]


DEFAULT_FINAL_HEAT = 10
"""Pages: on generated documents this found the right page first about twice as often as raw scores across windows."""


def check_size(size: int) -> int:
    """The number of pages in a final heat as it is.

    Raises:
        PageError: it is negative, or 1, which decides nothing.
    """
    if size < 0 or size == 1:
        raise PageError(f"final_heat counts pages that are compared once more: 2 or more, or 0 for none; got {size}.")
    return size


def finalists(values: Tensor, windows: Sequence[Window], size: int, room: int) -> list[int]:
    """The pages that one question's final heat takes, in the caller's order.

    All windows' best pages come first, then their second best, and so on; among equals the higher score.

    Args:
        values: ``(pages,)`` scores.
        windows: the windows before.
        size: pages at most.
        room: tokens at most.
    """
    entries: list[tuple[int, float, int, int]] = []  # rank in its window, minus the score, place, tokens
    for window in windows:
        own = values[window.members]
        for rank, member in enumerate(descending(own)):
            entries.append((rank, -float(own[member]), window.members[member], len(window.places[member].span)))
    chosen: list[int] = []
    used = 0
    for _, _, place, tokens in sorted(entries):
        if len(chosen) == size or used + tokens > room:
            break
        chosen.append(place)
        used += tokens
    return sorted(chosen)


def run_final_heat(scores: Scores, heat: Heat, questions: Sequence[LaidPiece]) -> None:
    """Run each question's final heat and put its scores in the place of the windows' own.

    Questions with the same finalists are asked together.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for number in range(len(questions)):
        chosen = finalists(scores.values[number], heat.windows, heat.size, heat.engine.room)
        if len(chosen) > 1:
            groups.setdefault(tuple(chosen), []).append(number)
    for places, asked in groups.items():
        for window in _windows_of(heat, places):
            attention = heat.engine.ask(
                window, [*(questions[number] for number in asked), *heat.null], tokens=scores.with_tokens
            )
            scores.add(window, *without_null(attention, calibrated=bool(heat.null)), questions=asked)
            window.cache = None


def _windows_of(heat: Heat, places: Sequence[int]) -> Iterable[Window]:
    """The finalists in one window: out of the windows before, where these hold what independent pages need, or run."""
    holding = {place for window in heat.windows if window.cache is not None for place in window.members}
    if heat.engine.independent and holding.issuperset(places):
        return [heat.engine.gather(heat.windows, places)]
    shown = ((place, heat.pages[place]) for place in places)
    return heat.engine.windows(shown, numbers=heat.numbers)
