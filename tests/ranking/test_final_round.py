"""Windows and the final round: who takes part, what the scores are, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch

from mmrh_retriever import (
    AttentionCaptureError,
    ContextOverflowError,
    Page,
    PageError,
    PageStore,
    Reranker,
    SettingsError,
)
from mmrh_retriever.encoding.window import Window
from mmrh_retriever.model.kv_cache import PageCache
from mmrh_retriever.model.prompts import PromptSegment
from mmrh_retriever.ranking.final_round import finalists
from mmrh_retriever.ranking.inputs import as_candidates
from mmrh_retriever.types import Candidate
from tests.factories import page_image, tiny

QUESTION = "How did revenue change?"


def reranker_for(**options: object) -> Reranker:
    model = tiny("qwen3_vl")
    return Reranker(model.model, (model.tokenizer, model.image_processor), "all", token_budget=620, **options)  # type: ignore[arg-type]


def pages(count: int = 9) -> list[Page]:
    return [Page(image=page_image(seed), index=seed) for seed in range(count)]


def window_of(indices: list[int], lengths: list[int]) -> Window:
    window = Window(PromptSegment(1), PageCache(1, capacity=1), independent=False)
    for index, length in zip(indices, lengths, strict=True):
        segment = PromptSegment(1)
        segment.add_text(range(length), scored=True)
        window.add_page(Candidate(index, index + 1, Page(text="x")), segment)
    return window


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
    plain = reranker_for(independent=independent, final_round=0)
    raw = {scored.position: scored.score for scored in plain.rank(QUESTION, shown)}
    windows = list(plain.engine().windows(as_candidates(shown)))
    assert len(windows) > 2
    values = torch.tensor([raw[index] for index in range(9)], dtype=torch.float64)
    chosen = finalists(values, windows, 4, plain.engine().room)
    assert 2 <= len(chosen) <= 4
    expected = {
        chosen[scored.position]: scored.score for scored in plain.rank(QUESTION, [shown[index] for index in chosen])
    }
    reranker = reranker_for(independent=independent, final_round=4, store=PageStore() if independent else None)
    encoded = reranker.encode(shown)
    for got in (reranker.rank(QUESTION, shown, with_tokens=True), encoded.rank(QUESTION, with_tokens=True)):
        assert {scored.position for scored in got} == set(range(9))
        first, rest = got[: len(chosen)], got[len(chosen) :]
        assert {scored.position: scored.score for scored in first} == pytest.approx(expected, abs=1e-6)
        assert [scored.score for scored in first] == sorted((scored.score for scored in first), reverse=True)
        assert {scored.position: scored.score for scored in rest} == pytest.approx(
            {index: raw[index] for index in raw if index not in chosen}, abs=1e-6
        )
        assert all(scored.token_scores is not None for scored in got)
    both = encoded.rank_many([QUESTION, "Which table shows staff numbers?"])
    assert [scored.position for scored in both[0]] == [scored.position for scored in got]
    alone = encoded.rank("Which table shows staff numbers?")
    assert [scored.position for scored in both[1]] == [scored.position for scored in alone]


def test_finalists_that_are_encoded_alone_are_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = reranker_for(independent=True, final_round=4)
    encoded = reranker.encode(pages())
    forgetful = reranker.encode(pages(), memory_budget=0)
    expected = [(scored.position, scored.score) for scored in forgetful.rank(QUESTION)]

    def write(*_: object) -> None:
        raise AssertionError("a page was written again")

    monkeypatch.setattr(reranker.prompter, "page_segment", write)
    got = encoded.rank(QUESTION, with_tokens=True)
    assert [scored.position for scored in got] == [position for position, _ in expected]
    assert [scored.score for scored in got] == pytest.approx([score for _, score in expected], abs=1e-6)
    for scored in got:
        assert scored.token_scores is not None
        assert scored.grid is not None
        assert len(scored.token_scores) == len(scored.grid.boxes)


def test_pages_that_a_window_no_longer_holds_are_not_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    together = reranker_for().engine()
    with pytest.raises(AttentionCaptureError, match="independent"):
        together.gather(list(together.windows(as_candidates(pages(2)))), [0])
    engine = reranker_for(independent=True).engine()
    windows = list(engine.windows(as_candidates(pages())))
    gathered = engine.gather(windows, [1, 8])
    assert gathered.indices == [1, 8]
    assert len(gathered) == len(engine._prefix) + sum(len(page.span) for page in gathered.pages)
    windows[0].drop()
    with pytest.raises(ContextOverflowError, match="dropped"):
        engine.gather(windows, [0])

    def short(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(PageCache, "append_from", short)
    with pytest.raises(PageError, match="Lower final_round or memory_budget"):
        engine.gather(windows, [8])


def test_one_window_needs_no_final() -> None:
    with_final, plain = reranker_for(final_round=2), reranker_for()
    got, expected = with_final.rank(QUESTION, pages(2)), plain.rank(QUESTION, pages(2))
    assert [(scored.position, scored.score) for scored in got] == [
        (scored.position, scored.score) for scored in expected
    ]
    assert with_final.with_heads("all").settings.final_round == 2


@pytest.mark.parametrize("size", [-1, 1])
def test_a_final_that_decides_nothing_is_refused(size: int) -> None:
    with pytest.raises(SettingsError, match=f"final_round.*got {size}"):
        reranker_for(final_round=size)


def test_the_old_name_goes_on_working() -> None:
    with pytest.warns(DeprecationWarning, match="final_round") as warned:
        old = reranker_for(final_heat=4)
    assert warned[0].filename == __file__
    assert old.settings == reranker_for(final_round=4).settings
    with pytest.warns(DeprecationWarning, match="settings.final_round"):
        assert old.final_heat == 4
