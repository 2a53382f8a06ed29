"""Attention in parts against plain softmax attention over everything, and the passes that use it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmrh_retriever import Page, Reranker, attention, scoring, split_attention
from mmrh_retriever.model.cpu_split_attention import attend_behind, can_split, log_sum_exp
from mmrh_retriever.model.recording import HeadsByLayer, Recording, record
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
    monkeypatch.setattr(split_attention, "KEYS_AT_ONCE", at_once)
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


def test_log_sum_exp_is_formed_in_float32() -> None:
    query, key = drawn(40, 32, dtype=torch.bfloat16) * 4, drawn(3, 700, 32, dtype=torch.bfloat16, seed=1) * 4
    expected = torch.logsumexp(query.double() @ key.double().transpose(1, 2) * 0.2, dim=2)
    torch.testing.assert_close(log_sum_exp(query, key, scaling=0.2).double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sinks", [False, True])
def test_spans_are_summed_as_if_attention_were_formed(sinks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "MANY_ROWS", 4)
    monkeypatch.setattr(scoring, "SPAN_KEYS", 8)
    owner = torch.full((200,), -1)
    owner[10:70], owner[75:120], owner[130:190] = 0, 1, 0  # span 0 in two runs of one length, span 2 nowhere
    heads = HeadsByLayer.of([(0, 3), (0, 0), (0, 1)])
    query, key = drawn(4, 9, 16, dtype=torch.bfloat16) * 3, drawn(2, 209, 16, dtype=torch.bfloat16, seed=1)
    sink = drawn(4, seed=2) if sinks else None
    rows = [range(1, 4), range(6, 9)]
    asked = torch.tensor([1, 2, 3, 6, 7, 8])
    mask = blocks(4, 5)[asked].masked_fill(blocks(4, 5)[asked] < 0, float("-inf"))
    formed = Recording(heads, rows, owner, 3, tokens=True)  # single keys are asked for: attention is formed
    record(formed, 0, query, key, mask, scaling=0.3, sinks=sink)

    def form(*_: Any) -> Tensor:
        raise AssertionError("attention was formed")

    monkeypatch.setattr(scoring, "_attention_rows", form)
    for budget in (scoring.LOGIT_BUDGET, 4 * scoring.RUNS * 16):  # all rows at once; four of one head or two of two
        monkeypatch.setattr(scoring, "LOGIT_BUDGET", budget)
        summed = Recording(heads, rows, owner, 3)
        record(summed, 0, query, key, mask, scaling=0.3, sinks=sink)
        torch.testing.assert_close(summed.mass, formed.mass, rtol=0, atol=1e-5)
    assert not summed.mass[:, :, 2].any()
    if not sinks:
        expected = plain(query[[3, 0, 1]], key[[1, 0, 0]], torch.nn.functional.pad(blocks(4, 5), (200, 0)), 0.3)
        on_first = expected[:, 1:4][:, :, :200][:, :, owner == 0].sum(dim=2).mean(dim=1)
        torch.testing.assert_close(summed.mass[0, :, 0].double(), on_first, rtol=0, atol=1e-5)


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
    monkeypatch.setattr(scoring, "MANY_ROWS", 4)
    monkeypatch.setattr(scoring, "SPAN_KEYS", 4)
    monkeypatch.setattr(scoring, "OTHER_KEYS", 1)
    rounding = 1e-6 if dtype is torch.float32 else 4e-3 if name == "llama" else 1e-3  # scores lie 0.01 to 0.06 apart
    summed = 0
    shares = scoring._run_shares

    def counted(*given: Any) -> Tensor:
        nonlocal summed
        summed += 1
        return shares(*given)

    monkeypatch.setattr(scoring, "_run_shares", counted)
    split = reranker.rank_many(questions, pages)
    monkeypatch.setattr(attention, "can_split", lambda *_: False)
    monkeypatch.setattr(scoring, "can_split", lambda *_: False)
    assert (summed > 0) == (dtype is torch.bfloat16)
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
