"""Buffers of keys and values: grown seldom, whole after a failure."""

from __future__ import annotations

import pytest
import torch

from mmrh_retriever import HeadSet, Page, PageStore, Reranker
from mmrh_retriever.model import kv_cache
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.kv_cache import PageLayer, RecordedLayer
from tests.factories import tiny


def filled(layer: PageLayer, tokens: int = 4) -> PageLayer:
    layer.update(torch.zeros(1, 1, tokens, 2), torch.zeros(1, 1, tokens, 2))
    return layer


@pytest.mark.parametrize("words", [[40], [160, 20, 20, 20]])
def test_a_buffer_grows_once_where_the_number_of_pages_is_known(
    words: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama")
    reranker = Reranker(model.model, model.tokenizer, "all", token_budget=40_000, independent=True)
    pages = [Page(text=f"Page {number}: revenue grew. " * words[number % len(words)]) for number in range(40)]
    grown: list[int] = []
    grow = kv_cache._grown

    def counted(buffer: torch.Tensor, used: int, capacity: int, *heads: list[int]) -> torch.Tensor:
        grown.append(capacity)
        return grow(buffer, used, capacity, *heads)

    monkeypatch.setattr(kv_cache, "_grown", counted)
    encoded = reranker.encode(pages)
    assert encoded.tokens > 3 * 4096
    assert len(grown) == 2 * 3 - 1, "keys and values of three layers, once each; of the last one keys alone"
    assert max(grown) < 1.5 * encoded.tokens


def test_a_buffer_never_grows_by_more_than_some_times_at_once() -> None:
    layer = filled(PageLayer(4))
    layer.expected = 10**9
    filled(layer, 1)
    assert layer.keys.shape[2] == 4 * kv_cache.AT_ONCE


def test_a_buffer_grows_by_less_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = filled(PageLayer(4))
    layer.expected = 40
    grow = kv_cache._grown

    def short(buffer: torch.Tensor, used: int, capacity: int) -> torch.Tensor:
        if capacity > 8:
            raise RuntimeError("can't allocate memory")
        return grow(buffer, used, capacity)

    monkeypatch.setattr(kv_cache, "_grown", short)
    filled(layer, 1)
    assert layer.keys.shape[2] == layer.values.shape[2] == 6
    with pytest.raises(RuntimeError, match="memory"):
        filled(layer, 9)
    assert layer.get_seq_length() == 5


def test_a_layer_that_could_not_grow_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = PageLayer(4)
    layer.update(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2))
    grown, calls = kv_cache._grown, []

    def second_fails(*given: object) -> torch.Tensor:
        calls.append(given)
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        return grown(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(kv_cache, "_grown", second_fails)
    with pytest.raises(torch.OutOfMemoryError):
        layer.update(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))
    assert layer.get_seq_length() == 4
    keys, values = layer.update(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))
    assert keys.shape == values.shape == (1, 1, 7, 2)


def test_a_recorded_layer_keeps_the_keys_of_its_heads_and_no_values() -> None:
    layer, whole = RecordedLayer(4, heads=[3, 2], of=4), PageLayer(4)  # two query heads share a key head
    for tokens in (3, 5):
        keys, values = torch.randn(1, 2, tokens, 2), torch.randn(1, 2, tokens, 2)
        kept, given = layer.update(keys, values)
        expected, _ = whole.update(keys, values)
        assert torch.equal(kept[:, 1], expected[:, 1])
        assert given is values
    assert (layer.get_seq_length(), layer.nbytes, whole.nbytes) == (8, 8 * 2 * 4, 4 * 8 * 2 * 4)


def test_windows_that_are_asked_keep_less_and_give_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("qwen3_vl")
    heads = HeadSet.parse("1-3,0-1,1-2")
    pages = [Page(text=f"Page {number}: revenue grew by {number} percent.", index=number) for number in range(6)]

    def kept(store: PageStore | None) -> tuple[int, list[float]]:
        reranker = Reranker(model.model, (model.tokenizer, model.image_processor), heads, store=store, independent=True)
        encoded = reranker.encode(pages)
        return encoded.nbytes, [scored.score for scored in encoded.rank("What grew?", with_tokens=True)]

    store = PageStore()
    less = [kept(None), kept(store), kept(store)]
    assert (store.hits, store.misses) == (6, 6)
    monkeypatch.setattr(Backbone, "keeps_plain_keys", False)
    everything = PageStore()
    size, scores = kept(everything)
    assert less == [(size * 5 // 8, scores)] * 3, "a layer whole, and one of two heads' keys in the other"
    assert store.nbytes == everything.nbytes * 5 // 8
