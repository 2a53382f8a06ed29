"""The benchmark's two sides compute the same; nothing timed is asserted."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForImageTextToText

from mmrh_retriever import Reranker
from mmrh_retriever.benchmark.pairs import PlainProcedure, Ratio, run_benchmark, sample_pages, sample_questions
from mmrh_retriever.benchmark.random_models import SHAPES, Shape, _config, random_reranker
from mmrh_retriever.cli.main import main
from tests.factories import tiny


def test_both_sides_give_the_same_scores() -> None:
    model = tiny("qwen3_vl")
    reranker = Reranker(model.model, (model.tokenizer, model.image_processor), "all")
    pages = sample_pages(3, side=(96, 128))
    expected = PlainProcedure(reranker, pages).rank("How did revenue change?")
    got = {scored.position: scored.score for scored in reranker.rank("How did revenue change?", pages)}
    assert [got[index] for index in range(3)] == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_run_reports_ratios_with_their_spread() -> None:
    model = tiny("qwen3_vl")
    reranker = Reranker(model.model, (model.tokenizer, model.image_processor), "all")
    measured = run_benchmark(reranker, pages=2, questions=2, rounds=2, side=(96, 128))
    assert [ratio.name for ratio in measured.ratios][:2] == ["first question", "each further question"]
    assert all(0 < ratio.low <= ratio.median <= ratio.high for ratio in measured.ratios)
    assert measured.ratios[-1].name == "a pass that records, against a bare one"
    assert measured.as_dict()["pages"] == 2
    assert (measured.heads, measured.layers, measured.deepest, measured.peak_bytes) == (12, 3, 2, 0)
    assert measured.tokens_per_second > 0
    assert reranker.store is None


def test_ratios_are_taken_pair_by_pair() -> None:
    ratio = Ratio.of("x", [2.0, 9.0, 4.0], [1.0, 3.0, 1.0])
    assert (ratio.median, ratio.low, ratio.high, ratio.seconds) == (3.0, 2.0, 4.0, 1.0)


def test_random_models_have_the_shapes_they_say() -> None:
    assert {name: (shape.layers, shape.heads, shape.key_heads) for name, shape in SHAPES.items()} == {
        "random": (8, 8, 4),
        "random-8b": (36, 32, 8),
    }
    with torch.device("meta"):
        config = _config(SHAPES["random-8b"])
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    decoder = model.model.language_model
    assert sum(weight.numel() for weight in decoder.layers.parameters()) == pytest.approx(6.95e9, rel=0.01)
    assert sum(config.text_config.rope_parameters["mrope_section"]) == 64


def test_the_random_model_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "random", Shape(64, 96, 3, 4, 2, 32, 32, 48, 2, 2, (0, 1)))
    reranker = random_reranker("random", device="cpu")
    assert sorted({head.layer for head in reranker.heads}) == [0, 1, 2]
    assert reranker.backbone.model.dtype is torch.float32
    ranked = reranker.rank(sample_questions(3)[2], sample_pages(2, side=(96, 128)))
    assert [scored.rank for scored in ranked] == [1, 2]
    assert len(set(sample_questions(16))) == 16


def test_the_command_measures_a_random_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(SHAPES, "random", Shape(64, 96, 3, 4, 2, 32, 32, 48, 2, 2, (0, 1)))
    few = ["--pages", "1", "--questions", "2", "--rounds", "1", "--device", "cpu", "--max-layer", "1", "--json"]
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--model", "random", *few])
    assert not ended.value.code
    measured = json.loads(capsys.readouterr().out)
    assert (measured["deepest"], measured["layers"], measured["heads"]) == (1, 3, 2)
    assert len(measured["ratios"]) == 6


def test_sample_pages_differ() -> None:
    pages = sample_pages(3, side=(200, 200))
    assert len({page.pixels().tobytes() for page in pages}) == 3
