"""Weights and adapters that change after a reranker was made: pages kept before are not those of the new ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mmrh_retriever import AttentionCaptureError, Page, PageStore, SettingsError
from mmrh_retriever.model.fingerprints import weights_fingerprint
from tests.encoding.test_changed_models import QUESTION, reranker_for, scores
from tests.factories import page_image, tiny

PAGES = [Page(image=page_image(1)), Page(text="Revenue grew by nine percent.")]


class Adapter(nn.Module):
    """A low-rank addition to a layer with the switches that peft's adapters have."""

    def __init__(self, base_layer: nn.Module, seed: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        generator = torch.Generator().manual_seed(seed)
        width = base_layer.weight.shape
        self.first = nn.ParameterDict({name: torch.randn(2, width[1], generator=generator) for name in "ab"})
        self.second = nn.ParameterDict({name: torch.randn(width[0], 2, generator=generator) for name in "ab"})
        self.scaling = {"a": 0.5, "b": 0.5}
        self.chosen = "a"
        self.disabled = True

    @property
    def active_adapters(self) -> list[str]:
        return [self.chosen]

    @property
    def disable_adapters(self) -> bool:
        return self.disabled

    def set_adapter(self, name: str) -> None:
        self.chosen = name

    def enable_adapters(self, enabled: bool) -> None:
        self.disabled = not enabled

    def scale(self, factor: float) -> None:
        self.scaling[self.chosen] *= factor

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        output = self.base_layer(given)
        if self.disabled:
            return output
        return output + given @ self.first[self.chosen].T @ self.second[self.chosen].T * self.scaling[self.chosen]


def fake_adapters(model: nn.Module) -> list[Any]:
    parts = [(model.get_submodule(name), leaf) for name, leaf in targets(model)]
    adapters = [Adapter(getattr(part, leaf), seed) for seed, (part, leaf) in enumerate(parts)]
    for (part, leaf), adapter in zip(parts, adapters, strict=True):
        setattr(part, leaf, adapter)
    model.eval()
    return adapters


def peft_adapters(model: nn.Module) -> list[Any]:
    peft = pytest.importorskip("peft", reason="peft is not installed; the stand-in above has its switches")
    names = [f"{name}.{leaf}" for name, leaf in targets(model)]
    settings = peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False)
    for name in "ab":
        peft.inject_adapter_in_model(settings, model, adapter_name=name)
    adapters: list[Any] = [model.get_submodule(name) for name in names]
    for adapter in adapters:
        adapter.scale = adapter.scale_layer
        adapter.set_adapter("a")
        adapter.enable_adapters(False)
    model.eval()
    return adapters


def targets(model: nn.Module) -> list[tuple[str, str]]:
    """Layers of the decoder and of the vision tower."""
    named = dict(model.named_modules())
    decoder = next(name for name in named if name.endswith("layers.0.self_attn.v_proj"))
    tower = next(name for name in named if name.endswith("blocks.0.attn.proj"))
    return [tuple(name.rsplit(".", 1)) for name in (decoder, tower)]  # type: ignore[misc]


@pytest.mark.parametrize("make", [fake_adapters, peft_adapters])
def test_an_adapter_put_in_or_switched_later_does_not_read_the_old_pages(make: Callable[..., list[Any]]) -> None:
    model, store = tiny("qwen3_vl"), PageStore()
    reranker = reranker_for(model, store=store)
    seen = [scores(reranker, PAGES)]
    adapters = make(model.model)
    changes: list[Callable[[Any], object]] = [
        lambda adapter: adapter.enable_adapters(True),
        lambda adapter: adapter.set_adapter("b"),
        lambda adapter: adapter.scale(3.0),
    ]
    for change in changes:
        for adapter in adapters:
            change(adapter)
        fresh = scores(reranker_for(model), PAGES)
        assert scores(reranker, PAGES) == pytest.approx(fresh, abs=1e-6)
        assert all(fresh != pytest.approx(before, abs=1e-6) for before in seen)
        seen.append(fresh)
    assert store.hits == 0
    scores(reranker, PAGES)
    assert store.hits == len(PAGES)


def test_switching_back_finds_the_first_pages_again() -> None:
    model, store = tiny("qwen3_vl"), PageStore()
    adapters = fake_adapters(model.model)
    reranker = reranker_for(model, store=store)
    plain = scores(reranker, PAGES)
    for enabled in (True, False):
        for adapter in adapters:
            adapter.enable_adapters(enabled)
        last = scores(reranker, PAGES)
    assert last == pytest.approx(plain, abs=1e-6)
    assert store.hits == len(PAGES)


def test_keys_that_were_dropped_are_not_made_again_with_other_weights() -> None:
    model = tiny("llama")
    pages = [Page(text=f"Revenue grew by {number} percent. " * 60) for number in range(4)]
    encoded = reranker_for(model, token_budget=2000).encode(pages, memory_budget=0)
    assert len(encoded._windows) > 1
    encoded.rank(QUESTION)
    with torch.no_grad():
        model.model.model.layers[0].self_attn.v_proj.weight.mul_(1.01)
    with pytest.raises(AttentionCaptureError, match="Encode the pages again"):
        encoded.rank(QUESTION)


def test_weights_held_as_buffers_are_looked_at() -> None:
    fingerprints = set()
    for value in (1, 2):
        model = tiny("llama").model
        layer = model.model.layers[1].mlp.up_proj
        layer.register_buffer("qweight", torch.full((8, 8), value, dtype=torch.int32))
        layer.register_buffer("scales", torch.ones(8, dtype=torch.float16))
        fingerprints.add(weights_fingerprint(model))
        layer.register_buffer("seen_so_far", torch.rand(3), persistent=False)
        fingerprints.add(weights_fingerprint(model))
    assert len(fingerprints) == 2


class Hook:
    """What accelerate puts on a module whose weights it keeps elsewhere."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self.weights_map = weights


@pytest.mark.parametrize("around", ["", ".self_attn"])
def test_offloaded_weights_are_looked_up_where_they_are(around: str) -> None:
    fingerprints = set()
    for factor in (1.0, 2.0, 2.0):
        model = tiny("llama").model
        block = model.model.layers[0]
        weight = block.self_attn.q_proj.weight.detach() * factor
        block.self_attn.q_proj.to("meta")
        holder = model.get_submodule(f"model.layers.0{around}")
        holder._hf_hook = Hook({"q_proj.weight" if around else "self_attn.q_proj.weight": weight})
        fingerprints.add(weights_fingerprint(model))
    assert len(fingerprints) == 2


def test_a_store_is_refused_where_weights_cannot_be_read() -> None:
    model = tiny("llama")
    reranker = reranker_for(model)
    model.model.lm_head.to("meta")  # which ranking does not run
    plain = scores(reranker, PAGES[1:])
    assert scores(reranker_for(model), PAGES[1:]) == plain
    with pytest.raises(SettingsError, match=r"lm_head\.weight .*meta device.*leave store out"):
        reranker.with_store(PageStore())
