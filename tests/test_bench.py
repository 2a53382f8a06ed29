"""The benchmark's two sides compute the same; nothing timed is asserted."""

from __future__ import annotations

import pytest
from factories import tiny

from mmrh_retriever import Reranker
from mmrh_retriever.bench import PlainProcedure, Ratio, run_benchmark, sample_pages


def test_both_sides_give_the_same_scores() -> None:
    model = tiny("qwen3_vl")
    reranker = Reranker(model.model, (model.tokenizer, model.image_processor), "all")
    pages = sample_pages(3, side=(96, 128))
    expected = PlainProcedure(reranker, pages).rank("How did revenue change?")
    got = {scored.position: scored.score for scored in reranker.rank("How did revenue change?", pages)}
    assert [got[place] for place in range(3)] == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_run_reports_ratios_with_their_spread() -> None:
    model = tiny("qwen3_vl")
    reranker = Reranker(model.model, (model.tokenizer, model.image_processor), "all")
    measured = run_benchmark(reranker, pages=2, questions=2, rounds=2, side=(96, 128))
    assert [ratio.name for ratio in measured.ratios][:2] == ["first question", "each further question"]
    assert all(0 < ratio.low <= ratio.median <= ratio.high for ratio in measured.ratios)
    assert measured.as_dict()["pages"] == 2


def test_ratios_are_taken_pair_by_pair() -> None:
    ratio = Ratio.of("x", [2.0, 9.0, 4.0], [1.0, 3.0, 1.0])
    assert (ratio.median, ratio.low, ratio.high, ratio.seconds) == (3.0, 2.0, 4.0, 1.0)


def test_sample_pages_differ() -> None:
    pages = sample_pages(3, side=(200, 200))
    assert len({page.pixels().tobytes() for page in pages}) == 3
