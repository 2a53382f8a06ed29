"""Our score blended with the one that a document came with: as shares, whatever the order of equals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmrh_retriever import SettingsError
from mmrh_retriever.adapters import AdapterSettings, PageClues, RankedItem
from mmrh_retriever.ranking.hybrid import softmax_of_z
from tests.ranking_stub import stub

OURS = (0.1, 0.9, 0.4, 0.2)


def rank(came_with: list[Any], ours: tuple[float, ...] = OURS, **settings: Any) -> list[RankedItem]:
    """Documents whose own scores are known, with the scores that they came with."""
    items = list(zip(ours, came_with, strict=True))
    return AdapterSettings(reranker=stub(), **settings).rank_items(
        "revenue?", items, lambda item: PageClues(text=f"score={item[0]}"), retrieval_score_of=lambda item: item[1]
    )


def scores(found: list[RankedItem]) -> list[float]:
    return [float(item.score or 0) for item in sorted(found, key=lambda item: item.position)]


def test_scores_replace_those_of_the_first_stage_by_default() -> None:
    assert scores(rank([5.0, 1.0, 3.0, 2.0])) == pytest.approx(OURS)
    assert AdapterSettings().fuse == "replace"
    for wrong in ({"fuse": "sum"}, {"retrieval_weight": 1.5}):
        with pytest.raises(SettingsError):
            AdapterSettings(**wrong)


def test_blended_scores_are_the_weighted_shares() -> None:
    came_with = [5.0, 1.0, 3.0, 2.0]
    found = rank(came_with, fuse="blend", retrieval_weight=0.3)
    expected = 0.7 * softmax_of_z(np.array(OURS)) + 0.3 * softmax_of_z(np.array(came_with))
    assert scores(found) == pytest.approx(expected)
    assert [item.position for item in found] == np.argsort(-expected).tolist()
    alone = rank(came_with, fuse="blend", retrieval_weight=1.0)
    assert [item.position for item in alone] == [0, 2, 3, 1]
    assert scores(rank([1e3 * it - 7 for it in came_with], fuse="blend", retrieval_weight=0.3)) == pytest.approx(
        expected
    )


@pytest.mark.parametrize("none", [None, float("nan"), float("inf"), "0.7", True, 10**400])
def test_a_document_without_such_a_score_counts_by_ours_alone(none: Any) -> None:
    found = scores(rank([5.0, none, 3.0, np.float32(2.0)], fuse="blend"))
    shares = softmax_of_z(np.array(OURS))
    assert found[1] == pytest.approx(shares[1])
    assert sum(found) == pytest.approx(1)
    assert found[0] > shares[0]
    assert scores(rank([none] * 4, fuse="blend")) == pytest.approx(OURS), "there is nothing to blend with"


def test_the_order_of_equals_does_not_count() -> None:
    came_with, ours = [2.0, 1.0, 1.0, 2.0, None], (0.5, 0.7, 0.7, 0.1, 0.3)
    found = scores(rank(came_with, ours, fuse="blend"))
    assert found[1] == found[2]
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        mixed = rank([came_with[i] for i in order], tuple(ours[i] for i in order), fuse="blend")
        assert scores(mixed) == pytest.approx([found[i] for i in order])
    equal = rank([3.0] * 5, ours, fuse="blend")
    assert [item.position for item in equal] == [1, 2, 0, 4, 3], "ours decides"


def test_thresholds_and_top_n_count_blended_scores() -> None:
    came_with = [5.0, 1.0, 3.0, 2.0]
    found = rank(came_with, fuse="blend")
    some = rank(came_with, fuse="blend", score_threshold=float(found[1].score or 0))
    assert [item.position for item in some] == [item.position for item in found[:2]]
