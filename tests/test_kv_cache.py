"""Buffers of keys and values: written in place, grown seldom, whole after a failure."""

from __future__ import annotations

import pytest
import torch
from factories import tiny

from mmrh_retriever import HeadId, Page, Reranker, kv_cache
from mmrh_retriever.engine import Engine
from mmrh_retriever.kv_cache import PageLayer


def test_a_buffer_grows_once_where_it_is_known_how_much_will_come(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    reranker = Reranker(model.model, model.tokenizer, "all")
    many = [Page(text=f"Page {number}: revenue grew. " * 40) for number in range(40)]
    grown: list[int] = []
    grow = kv_cache._grown

    def counted(buffer: torch.Tensor, used: int, capacity: int) -> torch.Tensor:
        grown.append(capacity)
        return grow(buffer, used, capacity)

    monkeypatch.setattr(kv_cache, "_grown", counted)
    engine = Engine(reranker.prompter, [HeadId(0, 0)], 40_000, independent=True)
    (window,) = engine.windows(enumerate(many), numbers=list(range(1, 41)))
    assert len(window) > 3 * 4096
    assert len(grown) == 2, "keys and values of one layer"
    assert grown[0] < 1.2 * len(window)


def test_a_buffer_never_grows_by_more_than_some_times_at_once() -> None:
    layer = PageLayer(4)
    layer.expected = 10**9
    layer.update(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2))
    keys, _ = layer.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    assert layer.keys.shape[2] == 4 * kv_cache.AT_ONCE
    assert keys[0, 0, :, 0].tolist() == [0, 0, 0, 0, 1]


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
