"""Passes over pages: several in one, as many as memory allows, the same scores however they are cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmrh_retriever import Page, PageError, PageStore, Reranker
from mmrh_retriever.encoding import engine
from mmrh_retriever.encoding.passes import Passes
from tests.factories import VISION, page_image, tiny

QUESTION = "How did revenue change?"


def reranker_for(name: str = "qwen3_vl", **options: Any) -> Reranker:
    model = tiny(name)
    return Reranker(model.model, (model.tokenizer, model.image_processor), "all", **options)


def pages(count: int = 5) -> list[Page]:
    return [Page(image=page_image(seed), index=seed) for seed in range(count)]


def passes(monkeypatch: pytest.MonkeyPatch, most: int = 1 << 30) -> list[int]:
    """How many pages each pass is given from now on; more than ``most`` do not fit in memory."""
    sizes: list[int] = []
    run = Passes.run_pages

    def counted(self: Passes, window: Any, segments: Any, features: Any = ()) -> None:
        sizes.append(len(segments))
        if len(segments) > most:
            raise torch.OutOfMemoryError
        run(self, window, segments, features)

    monkeypatch.setattr(Passes, "run_pages", counted)
    return sizes


@pytest.mark.parametrize("name", VISION)
def test_pages_that_share_a_pass_score_as_if_each_had_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = reranker_for(name)
    monkeypatch.setattr(engine, "PASS_TOKENS", 1)
    expected = {scored.position: scored.score for scored in reranker.rank(QUESTION, pages())}
    monkeypatch.setattr(engine, "PASS_TOKENS", 1 << 20)
    sizes = passes(monkeypatch)
    got = {scored.position: scored.score for scored in reranker.rank(QUESTION, pages())}
    assert sizes == [5]
    assert got == pytest.approx(expected, abs=1e-5)


def test_a_pass_takes_no_more_than_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = reranker_for()
    each = len(reranker.prompter.page_segment(pages()[0], 1))
    monkeypatch.setattr(engine, "PASS_TOKENS", 2 * each + each // 2)
    sizes = passes(monkeypatch)
    reranker.rank(QUESTION, pages())
    assert sizes == [2, 2, 1]
    sizes.clear()
    reranker_for(independent=True).rank(QUESTION, pages())
    assert sizes == [1] * 5, "pages that do not see one another"


def test_a_pass_that_does_not_fit_in_memory_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = reranker_for()
    expected = reranker.rank(QUESTION, pages())
    sizes = passes(monkeypatch, most=2)
    got = reranker.rank(QUESTION, pages())
    assert sizes == [5, 2, 3, 1, 2]
    assert [scored.position for scored in got] == [scored.position for scored in expected]
    assert [scored.score for scored in got] == pytest.approx([scored.score for scored in expected], abs=1e-6)
    passes(monkeypatch, most=0)
    with pytest.raises(PageError, match="page 1 .*does not fit in memory"):
        reranker.rank(QUESTION, pages())


def test_kept_pages_do_not_run_and_the_others_share_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = reranker_for(store=PageStore())
    reranker.rank(QUESTION, pages(2))
    sizes = passes(monkeypatch)
    got = reranker.rank(QUESTION, pages())
    assert sizes == [3]
    expected = reranker_for().rank(QUESTION, pages())
    assert [scored.score for scored in got] == pytest.approx([scored.score for scored in expected], abs=1e-6)
