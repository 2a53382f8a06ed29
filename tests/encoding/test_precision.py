"""Passes run in the model's own types, whatever the caller has set."""

from __future__ import annotations

import pytest
import torch

from mmrh_retriever import PageStore
from tests.encoding.test_changed_models import NAMES, QUESTION, pages_for, reranker_for, scores
from tests.factories import tiny


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing(name: str) -> None:
    pages = pages_for(name)
    plain = reranker_for(tiny(name))
    expected = scores(plain, pages)
    store = PageStore()
    with torch.autocast("cpu", torch.bfloat16):
        reranker = reranker_for(tiny(name), store=store)
        encoded = reranker.encode(pages)
        assert scores(reranker, pages) == pytest.approx(expected, abs=1e-7)
    assert scores(reranker_for(tiny(name), store=store), pages) == pytest.approx(expected, abs=1e-7)
    assert store.hits == 2 * len(pages)
    ranked = sorted(encoded.rank(QUESTION), key=lambda scored: scored.position)
    assert [scored.score for scored in ranked] == pytest.approx(expected, abs=1e-7)
