"""Buffers of keys and values: whole after a failure."""

from __future__ import annotations

import pytest
import torch

from mmrh_retriever import kv_cache
from mmrh_retriever.kv_cache import PageLayer


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
