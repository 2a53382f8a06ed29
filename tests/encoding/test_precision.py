"""Passes run in the model's own types, whatever the caller has set."""

from __future__ import annotations

import pytest
import torch

from mmrh_retriever import PageStore, UnsupportedModelError
from mmrh_retriever.model.families import Backbone
from tests.encoding.test_changed_models import NAMES, QUESTION, pages_for, reranker_for, scores
from tests.factories import VISION, tiny


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


@pytest.mark.parametrize("name", NAMES)
def test_another_default_type_changes_nothing(name: str) -> None:
    pages = pages_for(name)
    expected = scores(reranker_for(tiny(name)), pages)
    model = tiny(name)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = scores(reranker_for(model), pages)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("halved", ["decoder", "tower"])
@pytest.mark.parametrize("name", VISION)
def test_tower_and_decoder_of_different_types_run_or_are_refused(name: str, halved: str) -> None:
    pages = pages_for(name)
    expected = scores(reranker_for(tiny(name)), pages)
    model = tiny(name)
    backbone = Backbone.of(model.model)
    if halved == "tower":
        model.model.to(torch.bfloat16)
    backbone.decoder.to(torch.bfloat16 if halved == "decoder" else torch.float32)
    reranker = reranker_for(model)
    if name == "smolvlm":  # transformers itself can't join the two
        with pytest.raises(UnsupportedModelError, match=r"bfloat16.*Expected one type for both; call model\.to\("):
            reranker.rank(QUESTION, pages)
    else:
        assert scores(reranker, pages) == pytest.approx(expected, abs=0.02)
