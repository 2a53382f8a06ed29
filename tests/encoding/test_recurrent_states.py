"""Layers that have a state instead of keys: what is kept of them, and what can't be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmrh_retriever import HeadSetError, Page, Reranker
from mmrh_retriever.encoding.page_store import PageStore
from mmrh_retriever.encoding.passes import Passes
from mmrh_retriever.errors import ContextOverflowError, UnsupportedModelError
from mmrh_retriever.model.kv_cache import PageCache
from tests.factories import RECURRENT, page_image, tiny

QUESTIONS = ["How did revenue change?", "Which table shows water use?"]
PAGES = [Page(image=page_image(seed), index=seed) for seed in range(4)]


def reranker_for(name: str, **options: Any) -> Reranker:
    model = tiny(name)
    return Reranker(model.model, (model.tokenizer, model.image_processor), "all", **options)


def scores(reranker: Reranker, pages: list[Page]) -> list[list[float]]:
    ranked = reranker.rank_many(QUESTIONS, pages)
    return [[page.score for page in sorted(one, key=lambda page: page.position)] for one in ranked]


@pytest.mark.parametrize("name", RECURRENT)
def test_pages_seen_before_come_back_with_the_states_behind_them(name: str, tmp_path: Path) -> None:
    plain = reranker_for(name)
    store = PageStore(folder=tmp_path)
    kept = reranker_for(name, store=store)
    torch.testing.assert_close(scores(kept, PAGES[:3]), scores(plain, PAGES[:3]), atol=1e-5, rtol=0)
    assert (store.hits, store.misses) == (0, 3)
    later = reranker_for(name, store=PageStore(folder=tmp_path))
    torch.testing.assert_close(scores(later, PAGES), scores(plain, PAGES), atol=1e-5, rtol=0)
    assert (later.store.hits, later.store.misses) == (3, 1)


@pytest.mark.parametrize("name", RECURRENT)
def test_a_pass_that_failed_leaves_the_states_as_they_were(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = scores(reranker_for(name), PAGES)
    run, failed = Passes._run, []

    def short_of_memory(self: Passes, cache: PageCache, ids: list[int], *given: Any, **more: Any) -> Any:
        output = run(self, cache, ids, *given, **more)
        if not failed and len(ids) > 60:
            failed.append(len(ids))
            raise torch.OutOfMemoryError
        return output

    monkeypatch.setattr(Passes, "_run", short_of_memory)
    torch.testing.assert_close(scores(reranker_for(name), PAGES), expected, atol=1e-5, rtol=0)
    assert failed


@pytest.mark.parametrize("name", RECURRENT)
def test_independent_pages_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match="layers without attention.*independent=True"):
        reranker_for(name, independent=True).rank(QUESTIONS[0], PAGES)


def test_states_are_kept_at_one_length_alone() -> None:
    window = reranker_for("lfm2_vl").engine().open_window()
    window.cache.crop_to(len(window))
    with pytest.raises(ContextOverflowError, match=f"kept behind {len(window)}"):
        window.cache.crop_to(len(window) - 1)


def test_heads_are_those_of_layers_with_attention() -> None:
    reranker = reranker_for("lfm2_vl")
    assert {head.layer for head in reranker.heads} == {1, 3}
    with (
        pytest.raises(HeadSetError, match="4 attention heads in each of the layers 1, 3"),
        reranker.backbone.seam.ablating([(2, 0)]),
    ):
        pass
