"""Measures on cases worked out by hand, and against a library that covers them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from mmrh_retriever.evaluation.metrics import (
    Measured,
    PageBox,
    any_hit,
    layout_coverage,
    layout_measures,
    layout_recall,
    ndcg,
    page_measures,
    page_recall,
    reciprocal_rank,
    summarise,
)

NAN = float("nan")


def test_recall_counts_the_gold_pages_among_the_best() -> None:
    scores = [0.1, 0.9, 0.5, 0.7]  # order: 1, 3, 2, 0
    assert page_recall(scores, [1], 1) == 1
    assert page_recall(scores, [2], 1) == 0
    assert page_recall(scores, [2, 1], 1) == 0.5
    assert page_recall(scores, [2, 1], 3) == 1
    assert page_recall(scores, [0, 1, 2], 3) == pytest.approx(2 / 3)
    assert page_recall(scores, [0], 99) == 1


def test_a_hit_is_any_gold_page_among_the_best() -> None:
    scores = [0.1, 0.9, 0.5, 0.7]
    assert [any_hit(scores, [0, 2], k) for k in (1, 2, 3, 4)] == [0, 0, 1, 1]
    assert any_hit([0.0] * 10, [1, 2], 3) == pytest.approx(1 - 8 * 7 * 6 / (10 * 9 * 8))


def test_repeated_gold_pages_count_once() -> None:
    assert page_recall([1.0, 0.0], [0, 0, 1], 1) == 0.5


def test_reciprocal_rank_takes_the_best_gold_page() -> None:
    scores = [0.1, 0.9, 0.5, 0.7]
    assert reciprocal_rank(scores, [1]) == 1
    assert reciprocal_rank(scores, [0, 2]) == pytest.approx(1 / 3)


def test_ndcg_by_hand() -> None:
    scores = [0.1, 0.9, 0.5, 0.7]
    ideal = 1 + 1 / math.log2(3)
    assert ndcg(scores, [1, 2], 3) == pytest.approx((1 + 1 / math.log2(4)) / ideal)
    assert ndcg(scores, [3], 3) == pytest.approx(1 / math.log2(3))
    assert ndcg(scores, [1, 3, 2], 1) == 1  # the ideal is cut off too
    assert ndcg(scores, [0], 3) == 0


@pytest.mark.parametrize("scores", [[], [NAN, NAN, NAN]])
def test_a_question_without_result_counts_as_zero(scores: list[float]) -> None:
    assert set(page_measures(scores, [1]).values()) == {0.0}


def test_pages_that_were_not_ranked_are_never_found() -> None:
    scores = [NAN, 0.2, 0.1]
    assert page_recall(scores, [0], 3) == 0
    assert page_recall(scores, [0, 1], 3) == 0.5
    assert reciprocal_rank(scores, [0]) == 0


def test_gold_pages_beyond_the_ranked_ones_are_missed() -> None:
    assert page_recall([0.5, 0.1], [7], 2) == 0


@pytest.mark.parametrize("scores", [[0, 0, 0, 0], [1, 1, 0, 1], [2, 1, 1, 0], [1, 0, 0, 0]])
@pytest.mark.parametrize("gold", [[0], [1, 2], [0, 2, 3]])
def test_ties_give_the_mean_over_all_orders(scores: list[float], gold: list[int]) -> None:
    orders = [
        order
        for order in itertools.permutations(range(4))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    for k in (1, 2, 3):
        strict = [[float(-order.index(page)) for page in range(4)] for order in orders]
        assert page_recall(scores, gold, k) == pytest.approx(np.mean([page_recall(s, gold, k) for s in strict]))
        assert any_hit(scores, gold, k) == pytest.approx(np.mean([any_hit(s, gold, k) for s in strict]))
        assert ndcg(scores, gold, k) == pytest.approx(np.mean([ndcg(s, gold, k) for s in strict]))
        assert reciprocal_rank(scores, gold) == pytest.approx(np.mean([reciprocal_rank(s, gold) for s in strict]))


def test_a_silent_ranker_gets_what_chance_gives() -> None:
    assert page_recall(np.zeros(10), [0], 1) == pytest.approx(0.1)
    assert page_recall(np.zeros(10), [9], 5) == pytest.approx(0.5)


@pytest.mark.parametrize("call", [lambda: page_recall([1.0], [], 1), lambda: page_recall([1.0], [0], 0)])
def test_questions_without_gold_and_empty_cuts_are_refused(call: object) -> None:
    with pytest.raises(ValueError, match="at least"):
        call()  # type: ignore[operator]


def test_against_ir_measures() -> None:
    measures = pytest.importorskip("ir_measures", reason="pip install ir-measures pytrec-eval-terrier to compare")
    pytest.importorskip("pytrec_eval", reason="pip install pytrec-eval-terrier to compare")
    rng = np.random.default_rng(7)
    cuts = (1, 3, 5)
    for pages in (1, 4, 30):
        for _ in range(20):
            scores = rng.permutation(pages).astype(float)
            gold = rng.choice(pages, size=rng.integers(1, min(pages, 5) + 1), replace=False)
            wanted = {"q": {str(page): 1 for page in gold}}
            run = {"q": {str(page): float(scores[page]) for page in range(pages)}}
            kinds = [measures.R, measures.nDCG, measures.Success]
            asked = [measures.RR, *[kind @ k for kind in kinds for k in cuts]]
            theirs = measures.calc_aggregate(asked, wanted, run)
            assert reciprocal_rank(scores, gold.tolist()) == pytest.approx(theirs[measures.RR], abs=1e-6)
            for k in cuts:
                assert page_recall(scores, gold.tolist(), k) == pytest.approx(theirs[measures.R @ k], abs=1e-6)
                assert any_hit(scores, gold.tolist(), k) == pytest.approx(theirs[measures.Success @ k], abs=1e-6)
                assert ndcg(scores, gold.tolist(), k) == pytest.approx(theirs[measures.nDCG @ k], abs=1e-6)


A = PageBox(0, (0, 0, 10, 10))


def test_layout_recall_is_covered_area_over_gold_area() -> None:
    half = PageBox(0, (0, 0, 5, 10))
    assert layout_recall([half], [A], 1) == 0.5
    assert layout_recall([A], [half], 1) == 1
    assert layout_recall([PageBox(1, (0, 0, 10, 10))], [A], 1) == 0  # another page
    assert layout_recall([PageBox(0, (20, 0, 30, 10)), half], [A], 1) == 0  # beyond the cut
    assert layout_recall([PageBox(0, (20, 0, 30, 10)), half], [A], 2) == 0.5
    assert layout_recall([], [A], 5) == 0


def test_layout_recall_weighs_gold_boxes_by_area() -> None:
    gold = [A, PageBox(3, (0, 0, 30, 10))]
    assert layout_recall([A], gold, 1) == 0.25
    assert layout_recall([gold[1]], gold, 1) == 0.75
    assert layout_recall([gold[1], A], gold, 2) == 1


def test_overlapping_ranked_boxes_count_twice_in_recall_and_once_in_coverage() -> None:
    left, middle = PageBox(0, (0, 0, 6, 10)), PageBox(0, (3, 0, 6, 10))
    assert layout_recall([left, middle], [A], 2) == pytest.approx(0.9)
    assert layout_coverage([left, middle], [A], 2) == pytest.approx(0.6)
    assert layout_recall([A, A], [A], 2) == 2  # as in the published codes
    measures = layout_measures([A, A], [A], cuts=(2,))
    assert measures == {"recall@2": 2, "capped@2": 1, "coverage@2": 1}
    assert layout_coverage([left, PageBox(0, (4, 0, 10, 10))], [A], 2) == pytest.approx(1)


def test_coverage_counts_overlapping_gold_once() -> None:
    inner = PageBox(0, (0, 0, 5, 10))
    assert layout_coverage([inner], [A, inner], 1) == 0.5
    assert layout_recall([inner], [A, inner], 1) == pytest.approx(100 / 150)


def test_coverage_equals_recall_for_disjoint_boxes() -> None:
    rng = np.random.default_rng(3)
    cells = [PageBox(0, (x, y, x + 1, y + 1)) for x in range(6) for y in range(6)]
    gold = [PageBox(0, (0.5, 0.5, 3.25, 2.5)), PageBox(0, (4, 4, 5.5, 6)), PageBox(1, (0, 0, 1, 1))]
    for _ in range(10):
        ranked = [cells[index] for index in rng.permutation(len(cells))]
        for k in (1, 5, 20, 99):
            assert layout_coverage(ranked, gold, k) == pytest.approx(layout_recall(ranked, gold, k))


def test_gold_without_area_gives_nothing_and_no_gold_is_refused() -> None:
    flat = [PageBox(0, (0, 0, 0, 10))]
    for measure in (layout_recall, layout_coverage):
        assert measure([A], flat, 1) == 0
        assert measure([A], [*flat, A], 1) == 1
        with pytest.raises(ValueError, match="at least one gold box"):
            measure([A], [], 1)
    assert layout_measures([A], [A]) == {
        f"{name}@{k}": 1 for name in ("recall", "capped", "coverage") for k in (1, 5, 10)
    }


def test_micro_weighs_questions_and_macro_weighs_domains() -> None:
    results = [
        Measured("a", "law", {"recall@1": 1.0}, ("Table",), "scan"),
        Measured("a", "law", {"recall@1": 0.5}, ("Table", "Figure"), "scan"),
        Measured("a", "law", {"recall@1": 0.0}, (), "scan"),
        Measured("b", "news", {"recall@1": 1.0}, ("Figure",), "text layer"),
    ]
    summary = summarise(results)
    assert summary.questions == 4
    assert summary.micro == {"recall@1": 0.625}
    assert summary.macro == {"recall@1": 0.75}
    assert summary.by_domain == {"law": {"recall@1": 0.5}, "news": {"recall@1": 1.0}}
    assert summary.by_type == {
        "Figure": {"recall@1": 0.75}, "Table": {"recall@1": 0.75}, "unspecified": {"recall@1": 0.0}
    }  # fmt: skip
    assert summary.by_source == {"scan": {"recall@1": 0.5}, "text layer": {"recall@1": 1.0}}
    assert summary.counts["by_type"] == {"Figure": 2, "Table": 2, "unspecified": 1}


def test_averages_refuse_nothing_and_mixtures() -> None:
    with pytest.raises(ValueError, match="no questions"):
        summarise([])
    with pytest.raises(ValueError, match="different measures"):
        summarise([Measured("a", "x", {"mrr": 1.0}), Measured("a", "x", {"recall@1": 1.0})])
