"""Models whose weights accelerate keeps elsewhere and brings when a module runs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from mmrh_retriever import PageStore, UnsupportedModelError
from tests.encoding.test_changed_models import pages_for, reranker_for, scores
from tests.factories import tiny


class Hook:
    """As accelerate's: it knows where the module runs and holds its weights."""

    def __init__(self, module: nn.Module) -> None:
        self.execution_device = torch.device("cpu")
        self.weights_map = {name: weight.detach() for name, weight in module.named_parameters(recurse=False)}


def by_hand(model: nn.Module) -> None:
    """The embeddings alone, which say where token ids go."""
    embeddings: Any = model.get_input_embeddings()
    embeddings._hf_hook = Hook(embeddings)
    whole = copy.deepcopy(embeddings)
    embeddings.to("meta")
    embeddings.forward = whole.forward


def by_accelerate(model: nn.Module) -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed; the stand-in above is run")
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


@pytest.mark.parametrize("offload", [by_hand, by_accelerate])
@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3", "llama"])
def test_offloaded_models_rank_as_whole_ones(name: str, offload: Any) -> None:
    pages = pages_for(name)
    expected = scores(reranker_for(tiny(name)), pages)
    model, store = tiny(name), PageStore()
    offload(model.model)
    reranker = reranker_for(model, store=store)
    for _ in range(2):
        assert scores(reranker, pages) == pytest.approx(expected, abs=1e-6)
    assert store.hits == len(pages)


def test_models_without_numbers_are_refused() -> None:
    model = tiny("llama")
    model.model.get_input_embeddings().to("meta")
    with pytest.raises(UnsupportedModelError, match="meta device.*load the model again"):
        reranker_for(model)


def test_a_model_that_cannot_run_at_all_is_refused_with_its_own_reason() -> None:
    model = tiny("llama")
    model.model.model.layers[0].mlp.to(torch.bfloat16)
    with pytest.raises(UnsupportedModelError, match=r"can't be run as it was loaded.*dtype"):
        reranker_for(model)
