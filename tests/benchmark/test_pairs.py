"""The benchmark's two sides compute the same; nothing timed is asserted."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForImageTextToText, Qwen3VLConfig

from mmrh_retriever import Reranker
from mmrh_retriever.benchmark.pairs import PlainProcedure, Ratio, run_benchmark, sample_pages, sample_questions
from mmrh_retriever.benchmark.random_models import SHAPES, random_reranker
from mmrh_retriever.cli.main import main
from mmrh_retriever.errors import SettingsError
from tests.factories import tiny

TINY = {
    "text_config": {
        "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 5e6, "mrope_section": [6, 5, 5], "mrope_interleaved": True
        },
    },
    "vision_config": {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64,
        "deepstack_visual_indexes": [0, 1],
    },
    "image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4,
}  # fmt: skip


def test_both_sides_give_the_same_scores() -> None:
    model = tiny("qwen3_vl")
    reranker = Reranker(model.model, (model.tokenizer, model.image_processor), "all")
    pages = sample_pages(3, side=(96, 128))
    expected = PlainProcedure(reranker, pages).rank("How did revenue change?")
    got = {scored.position: scored.score for scored in reranker.rank("How did revenue change?", pages)}
    assert [got[position] for position in range(3)] == pytest.approx(expected.tolist(), abs=1e-6)


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
    lines = measured.table().markdown().splitlines()
    assert "layers 0 to 2 of 3" in lines[0]
    assert [line.split("|")[1].strip() for line in lines[4:]] == [ratio.name for ratio in measured.ratios]


def test_ratios_are_taken_pair_by_pair() -> None:
    ratio = Ratio.of("x", [2.0, 9.0, 4.0], [1.0, 3.0, 1.0])
    assert (ratio.median, ratio.low, ratio.high, ratio.seconds) == (3.0, 2.0, 4.0, 1.0)


def test_random_models_have_the_shapes_they_say() -> None:
    sizes = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    assert {name: tuple(shape["text_config"][size] for size in sizes) for name, shape in SHAPES.items()} == {
        "random": (8, 8, 4),
        "random-2b": (28, 16, 8),
        "random-8b": (36, 32, 8),
    }
    with torch.device("meta"):
        config = Qwen3VLConfig(**SHAPES["random-8b"])
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    decoder = model.model.language_model
    assert sum(weight.numel() for weight in decoder.layers.parameters()) == pytest.approx(6.95e9, rel=0.01)
    assert sum(config.text_config.rope_parameters["mrope_section"]) == 64


def test_the_random_model_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "random", TINY)
    reranker = random_reranker("random", device="cpu")
    assert sorted({head.layer for head in reranker.heads}) == [0, 1, 2]
    assert reranker.backbone.model.dtype is torch.float32
    assert random_reranker("random", device="cpu", dtype="bfloat16").backbone.model.dtype is torch.bfloat16
    with pytest.raises(SettingsError, match="'half-ish'"):
        random_reranker("random", device="cpu", dtype="half-ish")
    ranked = reranker.rank(sample_questions(3)[2], sample_pages(2, side=(96, 128)))
    assert [scored.rank for scored in ranked] == [1, 2]
    assert len(set(sample_questions(16))) == 16


def test_the_command_measures_a_random_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(SHAPES, "random", TINY)
    few = ["--pages", "1", "--questions", "2", "--rounds", "1", "--device", "cpu", "--max-layer", "1", "--json"]
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--model", "random", *few])
    assert not ended.value.code
    found = json.loads(capsys.readouterr().out)
    assert (found["deepest"], found["layers"], found["heads"]) == (1, 3, 2)
    assert len(found["ratios"]) == 6


def test_sample_pages_differ() -> None:
    pages = sample_pages(3, side=(200, 200))
    assert len({page.pixels().tobytes() for page in pages}) == 3
