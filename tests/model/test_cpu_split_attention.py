"""Attention in parts against plain softmax attention over everything, and the passes that use it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmrh_retriever import Page, Reranker
from mmrh_retriever.model import attention_seam, cpu_split_attention
from mmrh_retriever.model.cpu_split_attention import attend_behind, can_split
from tests.factories import page_image, tiny


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def plain(query: Tensor, key: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """``(heads, rows, keys)`` float64 attention, key heads repeated."""
    shared = query.shape[0] // key.shape[0]
    logits = query.double() @ key.double().repeat_interleave(shared, dim=0).transpose(1, 2) * scaling
    logits[:, :, logits.shape[2] - mask.shape[1] :] += mask.double()
    return logits.softmax(dim=2)


def blocks(*sizes: int) -> Tensor:
    """An additive mask of questions that don't see one another, each causal."""
    seen = torch.block_diag(*[torch.ones(size, size).tril() for size in sizes])
    return torch.zeros_like(seen).masked_fill_(seen == 0, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("sizes", [(11,), (3, 7, 1)])
@pytest.mark.parametrize("at_once", [16 * 1024, 16])
def test_parts_are_the_whole(
    key_heads: int, sizes: tuple[int, ...], dtype: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_split_attention, "KEYS_AT_ONCE", at_once)
    rows, seen = sum(sizes), 50
    query = drawn(1, 4, rows, 16, dtype=dtype)
    key = drawn(1, key_heads, seen + rows, 16, dtype=dtype, seed=1)
    value = drawn(1, key_heads, seen + rows, 16, dtype=dtype, seed=2)
    mask = blocks(*sizes)
    got = attend_behind(
        query,
        key,
        value,
        seen,
        scaling=0.4,
        mask=None if len(sizes) == 1 else mask.clamp(torch.finfo(dtype).min).to(dtype),
    )
    expected = plain(query[0], key[0], mask, 0.4) @ value[0].double().repeat_interleave(4 // key_heads, dim=0)
    assert got.dtype is dtype
    torch.testing.assert_close(got[0].double(), expected, rtol=0, atol=1e-5 if dtype is torch.float32 else 2e-2)


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rankings_are_the_same_without_the_kernel(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny(name)
    model = made.model.to(dtype)
    reranker = Reranker(model, (made.tokenizer, made.image_processor), "all", check=False)
    pages = [
        Page(image=page_image(seed)) if name != "llama" else Page(text=f"Page of fact {seed}.") for seed in range(4)
    ]
    questions = ["How did revenue change?", "Which table shows staff numbers?", "Who wrote it?"]
    rounding = 1e-6 if dtype is torch.float32 else 4e-3 if name == "llama" else 1e-3  # scores lie 0.01 to 0.06 apart
    split = reranker.rank_many(questions, pages)
    monkeypatch.setattr(attention_seam, "can_split", lambda *_: False)
    whole = reranker.rank_many(questions, pages)
    for one, other in zip(split, whole, strict=True):
        mine, theirs = ({scored.position: scored.score for scored in ranking} for ranking in (one, other))
        assert mine == pytest.approx(theirs, abs=rounding)


def test_what_the_kernel_cannot_take_is_not_split() -> None:
    query = drawn(1, 2, 3, 16)
    assert can_split(query, query, query)
    assert not can_split(query, query, query[..., :8])
    assert not can_split(query.double(), query.double(), query.double())
    assert not can_split(query.to("meta"), query.to("meta"), query.to("meta"))
    assert not can_split(query, query, query.bfloat16()), "as autocast leaves them"


def test_autocast_ranks_as_before() -> None:
    made = tiny("qwen3_vl")
    reranker = Reranker(made.model, (made.tokenizer, made.image_processor), "all", check=False)
    pages = [Page(image=page_image(seed)) for seed in range(3)]
    expected = {scored.position: scored.score for scored in reranker.rank("How did revenue change?", pages)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = reranker.rank("How did revenue change?", pages)
    assert {scored.position: scored.score for scored in got} == pytest.approx(expected, abs=2e-2)
