"""Windows and the final heat: who takes part, what the scores are, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch

from mmrh_retriever import AttentionCaptureError, ContextOverflowError, Page, PageError, PageStore, Reranker
from mmrh_retriever.encoding.engine import PageInWindow, Window
from mmrh_retriever.model.kv_cache import PageCache
from mmrh_retriever.ranking.final_round import finalists
from mmrh_retriever.types import TokenSpan
from tests.factories import page_image, tiny

QUESTION = "How did revenue change?"


def reranker_for(**options: object) -> Reranker:
    model = tiny("qwen3_vl")
    return Reranker(model.model, (model.tokenizer, model.image_processor), "all", token_budget=620, **options)  # type: ignore[arg-type]


def pages(count: int = 9) -> list[Page]:
    return [Page(image=page_image(seed), index=seed) for seed in range(count)]


def window_of(members: list[int], lengths: list[int]) -> Window:
    return Window(members, [PageInWindow(TokenSpan(0, length), (), None, length) for length in lengths])


def test_every_window_sends_its_best_first() -> None:
    windows = [window_of([0, 1, 2], [5, 5, 5]), window_of([3, 4], [5, 30])]
    values = torch.tensor([0.5, 0.9, 0.7, 0.1, 0.2], dtype=torch.float64)
    assert finalists(values, windows, 2, 100) == [1, 4]
    assert finalists(values, windows, 3, 100) == [1, 2, 4]
    assert finalists(values, windows, 9, 100) == [0, 1, 2, 3, 4]
    assert finalists(values, windows, 9, 36) == [1, 4], "as many as fit"


@pytest.mark.parametrize("independent", [False, True])
def test_finalists_stand_first_with_the_scores_of_one_window_together(independent: bool) -> None:
    shown = pages()
    plain = reranker_for(independent=independent, final_heat=0)
    raw = {scored.position: scored.score for scored in plain.rank(QUESTION, shown)}
    windows = list(plain._engine().windows(enumerate(shown), numbers=list(range(1, 10))))
    assert len(windows) > 2
    values = torch.tensor([raw[place] for place in range(9)], dtype=torch.float64)
    chosen = finalists(values, windows, 4, plain._engine().room)
    assert 2 <= len(chosen) <= 4
    expected = {
        chosen[scored.position]: scored.score for scored in plain.rank(QUESTION, [shown[place] for place in chosen])
    }
    reranker = reranker_for(independent=independent, final_heat=4, store=PageStore() if independent else None)
    encoded = reranker.encode(shown)
    for got in (reranker.rank(QUESTION, shown, with_tokens=True), encoded.rank(QUESTION, with_tokens=True)):
        assert {scored.position for scored in got} == set(range(9))
        head, rest = got[: len(chosen)], got[len(chosen) :]
        assert {scored.position: scored.score for scored in head} == pytest.approx(expected, abs=1e-6)
        assert [scored.score for scored in head] == sorted((scored.score for scored in head), reverse=True)
        assert {scored.position: scored.score for scored in rest} == pytest.approx(
            {place: raw[place] for place in raw if place not in chosen}, abs=1e-6
        )
        assert all(scored.token_scores is not None for scored in got)
    both = encoded.rank_many([QUESTION, "Which table shows staff numbers?"])
    assert [scored.position for scored in both[0]] == [scored.position for scored in got]
    alone = encoded.rank("Which table shows staff numbers?")
    assert [scored.position for scored in both[1]] == [scored.position for scored in alone]


def test_finalists_that_are_encoded_alone_are_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = reranker_for(independent=True, final_heat=4)
    encoded = reranker.encode(pages())
    forgetful = reranker.encode(pages(), memory_budget=0)
    expected = [(scored.position, scored.score) for scored in forgetful.rank(QUESTION)]

    def lay(*_: object) -> None:
        raise AssertionError("a page was laid again")

    monkeypatch.setattr(reranker.prompter, "page_segment", lay)
    got = encoded.rank(QUESTION, with_tokens=True)
    assert [scored.position for scored in got] == [position for position, _ in expected]
    assert [scored.score for scored in got] == pytest.approx([score for _, score in expected], abs=1e-6)
    for scored in got:
        assert scored.token_scores is not None
        assert scored.grid is not None
        assert len(scored.token_scores) == len(scored.grid.boxes)


def test_pages_that_a_window_no_longer_holds_are_not_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    together = reranker_for()._engine()
    with pytest.raises(AttentionCaptureError, match="independent"):
        together.gather(list(together.windows(enumerate(pages(2)), numbers=[1, 2])), [0])
    engine = reranker_for(independent=True)._engine()
    windows = list(engine.windows(enumerate(pages()), numbers=list(range(1, 10))))
    gathered = engine.gather(windows, [1, 8])
    assert gathered.members == [1, 8]
    assert len(gathered) == len(engine._head) + sum(len(place.span) for place in gathered.places)
    with pytest.raises(ContextOverflowError, match="a window takes"):
        engine.gather(windows, list(range(9)))
    with pytest.raises(ContextOverflowError, match="Page 99 is in none of"):
        engine.gather(windows, [99])
    windows[0].cache = None
    with pytest.raises(ContextOverflowError, match="dropped"):
        engine.gather(windows, [0])

    def short(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(PageCache, "append_from", short)
    with pytest.raises(PageError, match="Lower final_heat or memory_budget"):
        engine.gather(windows, [8])


def test_one_window_needs_no_final() -> None:
    with_final, plain = reranker_for(final_heat=2), reranker_for()
    got, expected = with_final.rank(QUESTION, pages(2)), plain.rank(QUESTION, pages(2))
    assert [(scored.position, scored.score) for scored in got] == [
        (scored.position, scored.score) for scored in expected
    ]
    assert with_final.with_heads("all").final_heat == 2


@pytest.mark.parametrize("size", [-1, 1])
def test_a_final_that_decides_nothing_is_refused(size: int) -> None:
    with pytest.raises(PageError, match=f"final_heat.*got {size}"):
        reranker_for(final_heat=size)
