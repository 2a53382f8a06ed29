"""Windows cut by a count of pages, under the token budget."""

from __future__ import annotations

from typing import Any

import pytest

from mmrh_retriever import Page, PageStore, Reranker, SettingsError
from mmrh_retriever.ranking.inputs import as_candidates
from tests.factories import page_image, tiny

QUESTION = "How did revenue change?"


def reranker_for(**options: Any) -> Reranker:
    model = tiny("qwen3_vl")
    return Reranker(model.model, (model.tokenizer, model.image_processor), "all", final_round=0, **options)


def pages(count: int = 7) -> list[Page]:
    return [Page(image=page_image(seed), index=seed) for seed in range(count)]


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("count", [0, 7])
def test_windows_hold_so_many_pages(independent: bool, count: int) -> None:
    engine = reranker_for(window_pages=3, independent=independent).engine()
    windows = list(engine.windows(as_candidates(pages()), count=count))
    assert [window.indices for window in windows] == [[0, 1, 2], [3, 4, 5], [6]]


def test_the_token_budget_goes_before_the_count() -> None:
    by_tokens = [window.indices for window in reranker_for(token_budget=620).engine().windows(as_candidates(pages()))]
    both = reranker_for(token_budget=620, window_pages=5).engine()
    assert max(map(len, by_tokens)) < 5
    assert [window.indices for window in both.windows(as_candidates(pages()))] == by_tokens


def test_scores_are_those_of_the_windows_alone() -> None:
    shown = pages()
    plain = reranker_for()
    expected = {
        start + scored.position: scored.score
        for start in (0, 3, 6)
        for scored in plain.rank(QUESTION, shown[start : start + 3])
    }
    for store in (None, PageStore()):
        reranker = reranker_for(window_pages=3, store=store)
        encoded = reranker.encode(shown, memory_budget=0)  # windows are dropped and encoded again
        for ranking in (reranker.rank(QUESTION, shown), encoded.rank(QUESTION)):
            assert {scored.position: scored.score for scored in ranking} == pytest.approx(expected, abs=1e-6)


def test_a_final_round_has_no_more_pages_than_a_window() -> None:
    reranker = reranker_for(window_pages=3).with_store(None)
    with_final = Reranker(
        reranker.backbone.model, (reranker.prompter.tokenizer, reranker.prompter.image_processor), "all",
        window_pages=3, final_round=5,
    )  # fmt: skip
    shown = pages()
    ranked = with_final.rank(QUESTION, shown)
    first = sorted(scored.position for scored in ranked[:3])
    together = {first[item.position]: item.score for item in reranker.rank(QUESTION, [shown[i] for i in first])}
    assert {scored.position: scored.score for scored in ranked[:3]} == pytest.approx(together, abs=1e-6)


def test_no_pages_are_refused() -> None:
    with pytest.raises(SettingsError, match="window_pages"):
        reranker_for(window_pages=0)
