"""Evaluations on generated PDFs: measures, failures and settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrh_retriever import Page, PromptOptions, RerankSettings
from mmrh_retriever.errors import DataError
from mmrh_retriever.evaluation import evaluate, settings_of
from mmrh_retriever.evaluation.mmdocir import MMDocIR
from mmrh_retriever.evaluation.rankers import RankerSpec, Scores
from mmrh_retriever.evaluation.rows import Row
from mmrh_retriever.files import read_jsonl
from mmrh_retriever.model.loading import HEADS_FILE
from tests.evaluation.oracle import Oracle


def read_rows(folder: Path) -> list[Row]:
    return [row for _, row in read_jsonl(folder / "rows.jsonl", Row, what="row of an evaluation")]


def test_every_question_is_measured(data: MMDocIR, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = evaluate(data, {"oracle": Oracle(), "bm25": RankerSpec("bm25"), "random": RankerSpec("random")}, out)
    assert found.summaries["oracle"].micro["recall@1"] == found.summaries["oracle"].macro["mrr"] == 1
    bm25 = found.summaries["bm25"]
    assert bm25.by_domain["News"]["recall@1"] == 1
    assert bm25.by_source == {
        "scan": pytest.approx(
            {
                **{f"{name}@{k}": 1 / 3 if k == 1 else 1 for name in ("recall", "hit") for k in (1, 3, 5, 10)},
                **{f"ndcg@{k}": (1 + 1 / np.log2(3) + 0.5) / 3 for k in (3, 5, 10)},
                "mrr": (1 + 1 / 2 + 1 / 3) / 3,
            }
        ),
        "text layer": pytest.approx(dict.fromkeys(bm25.micro, 1.0)),
    }
    assert bm25.micro["recall@1"] == pytest.approx((6 + 1) / 9)
    assert bm25.macro["recall@1"] == pytest.approx((1 + 3 / 5) / 2)
    rows = read_rows(out)
    assert len(rows) == 27
    assert rows[0].model_dump()["scores"] == [1.0, 0.0, 0.0, 0.0]
    assert {row.ranker for row in rows} == {"oracle", "bm25", "random"}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["bm25"]["questions"] == 9
    assert summary["bm25"]["counts"]["by_domain"] == {"Law": 5, "News": 4}
    assert summary["bm25"]["intervals"]["micro"]["recall@1"]["mean"] == pytest.approx(7 / 9)
    assert summary["bm25"]["oracle above this"]["recall@1"]["difference"] == pytest.approx(2 / 9)
    assert json.loads((out / "settings.json").read_text())["settings"]["dataset"]["fingerprint"] == data.fingerprint


def test_layout_level_scales_boxes_to_the_gold_units(data: MMDocIR, tmp_path: Path) -> None:
    found = evaluate(data, {"oracle": Oracle(), "random": RankerSpec("random")}, tmp_path / "out", level="layout")
    row = found.parts["oracle"][0].rows[2]
    (box, *_) = row.boxes
    assert box[0] == 2
    x0, y0, x1, y1 = box[1]  # the word's box, doubled
    assert (30, 60) < (x0, y0) < (x1, y1) < (200, 130)
    assert row.measures["recall@1"] == pytest.approx((x1 - x0) * (y1 - y0) / (160 * 50), rel=0.2)
    assert row.scores == []
    assert set(found.summaries) == {"oracle", "random"}
    assert found.summaries["oracle"].micro["recall@1"] >= found.summaries["random"].micro["recall@1"]


def test_gold_boxes_without_area_count_zero_and_none_are_refused(
    data: MMDocIR, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = (tmp_path / "annotations.jsonl").read_text()
    (tmp_path / "annotations.jsonl").write_text(content.replace("30, 70, 190, 120", "30, 70, 30, 120", 1))
    flat = MMDocIR.from_pdfs(tmp_path / "annotations.jsonl", tmp_path)
    found = evaluate(flat, {"oracle": Oracle()}, tmp_path / "out", level="layout")
    assert "Question 0 of a.pdf (line 1) counts as zero: its gold boxes have no area." in caplog.messages
    first, second, *_ = found.parts["oracle"][0].rows
    assert set(first.measures.values()) == {0.0}
    assert second.measures["recall@1"] > 0
    (tmp_path / "annotations.jsonl").write_text(content.replace("layout_mapping", "left_out", 1))
    with pytest.raises(DataError, match=r"Question 0 of a\.pdf \(line 1\) has no gold box"):
        evaluate(MMDocIR.from_pdfs(tmp_path / "annotations.jsonl", tmp_path), {"oracle": Oracle()}, tmp_path / "none",
                 level="layout")  # fmt: skip


def test_documents_without_result_count_as_zero_and_are_tried_again(data: MMDocIR, tmp_path: Path) -> None:
    found = evaluate(data, {"oracle": Oracle(fail_on="b.pdf")}, tmp_path / "out")
    assert found.summaries["oracle"].questions == 9
    assert found.summaries["oracle"].micro["recall@1"] == pytest.approx(7 / 9)
    assert found.failed == {"b.pdf": "no power"}
    assert [row.error for row in read_rows(tmp_path / "out") if row.document == "b.pdf"] == ["no power"] * 2
    healed = Oracle()
    again = evaluate(data, {"oracle": healed}, tmp_path / "out", resume=True)
    assert healed.asked == ["b.pdf"]
    assert again.failed == {}
    assert again.summaries["oracle"].micro["recall@1"] == 1


def test_missing_documents_count_as_zero_when_allowed(data: MMDocIR, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").unlink()
    left = MMDocIR.from_pdfs(tmp_path / "annotations.jsonl", tmp_path, allow_missing=True)
    found = evaluate(left, {"oracle": Oracle()}, tmp_path / "out")
    assert found.summaries["oracle"].by_domain["News"]["recall@1"] == 0
    assert found.summaries["oracle"].micro["recall@1"] == pytest.approx(5 / 9)
    assert "no such PDF" in found.failed["a.pdf"]


def test_settings_know_model_heads_and_versions(data: MMDocIR, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "heads.json").write_text("{}")

    def described(heads: str = str(tmp_path / "heads.json")) -> dict[str, object]:
        spec = RankerSpec("heads", model=model, heads=heads, calibrate=False, token_budget=9)
        return settings_of(data, {"selected": spec}, level="page")["rankers"]["selected"]

    about = described()
    assert about["model"] == str(model)
    assert (about["calibrate"], about["token_budget"], about["final_round"]) == (False, 9, 10)
    assert about["dtype"] == ("auto" if torch.cuda.is_available() or torch.backends.mps.is_available() else "float32")
    (model / "README.md").write_text("a word more")
    (model / HEADS_FILE).write_text("{}")
    assert described() == about
    assert described("published")["heads_fingerprint"] == about["heads_fingerprint"]
    (model / "config.json").write_text("{ }")
    changed = described()
    assert changed["model_fingerprint"] != about["model_fingerprint"]
    assert changed["heads_fingerprint"] == about["heads_fingerprint"]
    found = settings_of(data, {"x": Oracle(), "bm25": RankerSpec("bm25", device="cuda")}, level="page")
    assert found["rankers"] == {"x": {"class": "Oracle"}, "bm25": {"kind": "bm25"}}
    assert {"torch", "transformers", "mmrh_retriever", "python"} <= set(found["versions"])


def test_the_type_of_the_weights_is_known_before_they_are_read(
    data: MMDocIR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for capabilities, stored, expected in (
        ({"amx_bf16": True}, torch.bfloat16, "bfloat16"),
        ({"amx_bf16": True}, torch.float32, "float32"),
        ({"amx_bf16": True}, None, "float32"),
        ({"avx512_f": True}, torch.bfloat16, "float32"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        config = {} if stored is None else {"dtype": str(stored).removeprefix("torch.")}
        (tmp_path / "config.json").write_text(json.dumps(config))
        for device, dtype in (("cpu", expected), ("cuda", "auto")):
            spec = RankerSpec("heads", model=tmp_path, heads="all", device=device)
            assert settings_of(data, {"x": spec}, level="page")["rankers"]["x"]["dtype"] == dtype


def test_settings_are_ready_for_json(data: MMDocIR) -> None:
    given = RerankSettings(
        model="some/model", cache_dir="x", model_kwargs={"torch_dtype": torch.float16}, options=PromptOptions("text")
    )
    about = settings_of(data, {"x": RankerSpec("heads", settings=given, heads="all")}, level="page")["rankers"]["x"]
    assert json.loads(json.dumps(about)) == about
    assert (about["model_kwargs"], about["options"]["content"]) == ({"torch_dtype": "torch.float16"}, "text")
    assert "cache_dir" not in about


@pytest.mark.parametrize("scores", [np.zeros((1, 1)), np.full((4, 4), np.inf)])
def test_rankers_that_answer_wrongly_are_named(data: MMDocIR, tmp_path: Path, scores: Scores) -> None:
    class Wrong:
        def rank(self, questions: Sequence[str], pages: Sequence[Page]) -> Scores:
            return scores

    found = evaluate(data.first(1), {"wrong": Wrong()}, tmp_path / "out")
    assert "wrong gave" in found.failed["a.pdf"]


def test_nothing_to_evaluate(data: MMDocIR, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate(data, {}, tmp_path / "out")
