"""Evaluations on generated PDFs: measures, resuming after a kill, settings, tables and plots."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pymupdf
import pytest

from mmrh_retriever import Page
from mmrh_retriever.baselines import RandomRanker, RankerSpec, Scores, listed_regions
from mmrh_retriever.errors import DataError, MMRHError
from mmrh_retriever.evaluation import Evaluation, evaluate, settings_of
from mmrh_retriever.evaluation_documents import Task, measure_document
from mmrh_retriever.evaluation_report import (
    as_rich,
    comparison_rows,
    group_rows,
    markdown_report,
    plot_comparison,
    turned,
)
from mmrh_retriever.evaluation_rows import RunFolder, read_rows
from mmrh_retriever.loading import HEADS_FILE
from mmrh_retriever.mmdocir import MMDocIR

WORDS = ["apple", "pear", "plum", "cherry"]
BOX = [15, 35, 95, 60]


class Oracle:
    """Knows that question "N" is answered on page N, and the box that holds the word."""

    asked: list[str]

    def __init__(self, fail_on: str = "") -> None:
        self.asked = []
        self.fail_on = fail_on

    def rank(self, questions: Sequence[str], pages: Sequence[Page]) -> Scores:
        name = str(pages[0].doc_id)
        self.asked.append(name)
        if name == self.fail_on:
            raise MMRHError("no power")
        return np.array([[float(str(page.index) in question) for page in pages] for question in questions])

    def rank_regions(self, questions: Sequence[str], pages: Sequence[Page]) -> Scores:
        places = [page.index for page in pages for _ in page.regions]
        assert len(places) == len(listed_regions(pages))
        return np.array([[float(str(place) in question) for place in places] for question in questions])


class Kill(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.fixture
def data(tmp_path: Path) -> MMDocIR:
    lines = []
    for name, domain, count in (("a.pdf", "News", 4), ("b.pdf", "Law", 2), ("scan.pdf", "Law", 3)):
        made = pymupdf.open()
        for word in WORDS[:count]:
            page = made.new_page(width=200, height=300)
            if name == "scan.pdf":
                page.draw_rect((20, 20, 90, 90), fill=(0, 0, 0))
            else:
                page.insert_text((20, 50), word, fontsize=16)
        made.save(tmp_path / name)
        questions = [
            {
                "Q": f"Page {page} or {WORDS[page]}?", "A": "", "page_id": [page], "type": "['Table']",
                "layout_mapping": [{"page": page, "page_size": [400.0, 600.0], "bbox": [2 * v for v in BOX]}],
            }
            for page in range(count)
        ]  # fmt: skip
        lines.append({"doc_name": name, "domain": domain, "page_indices": [0, count - 1], "questions": questions})
    (tmp_path / "annotations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return MMDocIR.from_pdfs(tmp_path / "annotations.jsonl", tmp_path)


def test_every_question_is_measured(data: MMDocIR, tmp_path: Path) -> None:
    pytest.importorskip("bm25s", reason="pip install bm25s for the BM25 baseline")
    out = tmp_path / "out"
    found = evaluate(data, {"oracle": Oracle(), "bm25": RankerSpec("bm25"), "random": RankerSpec("random")}, out)
    assert found.summaries["oracle"].micro["recall@1"] == found.summaries["oracle"].macro["mrr"] == 1
    bm25 = found.summaries["bm25"]
    assert bm25.by_domain["News"]["recall@1"] == 1
    assert bm25.by_source == {
        "scan": pytest.approx({"recall@1": 1 / 3, "recall@3": 1, "recall@5": 1, "mrr": (1 + 1 / 2 + 1 / 3) / 3,
                               "ndcg@3": (1 + 1 / np.log2(3) + 0.5) / 3, "ndcg@5": (1 + 1 / np.log2(3) + 0.5) / 3}),
        "text layer": pytest.approx(dict.fromkeys(bm25.micro, 1.0)),
    }  # fmt: skip
    assert bm25.micro["recall@1"] == pytest.approx((6 + 1) / 9)
    assert bm25.macro["recall@1"] == pytest.approx((1 + 3 / 5) / 2)
    rows = list(read_rows(out))
    assert len(rows) == 27
    assert rows[0].model_dump()["scores"] == [1.0, 0.0, 0.0, 0.0]
    assert {row.ranker for row in rows} == {"oracle", "bm25", "random"}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["bm25"]["questions"] == 9
    assert summary["bm25"]["counts"]["by_domain"] == {"Law": 5, "News": 4}
    assert summary["bm25"]["intervals"]["micro"]["recall@1"]["mean"] == pytest.approx(7 / 9)
    assert summary["bm25"]["oracle above this"]["recall@1"]["difference"] == pytest.approx(2 / 9)
    assert json.loads((out / "settings.json").read_text())["dataset"]["fingerprint"] == data.fingerprint


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


def test_layout_level_needs_gold_boxes(data: MMDocIR, tmp_path: Path) -> None:
    content = (tmp_path / "annotations.jsonl").read_text()
    (tmp_path / "annotations.jsonl").write_text(content.replace("30, 70, 190, 120", "30, 70, 30, 120"))
    flat = MMDocIR.from_pdfs(tmp_path / "annotations.jsonl", tmp_path)
    with pytest.raises(DataError, match=r"Question 0 of a\.pdf \(line 1\) has no gold box"):
        evaluate(flat, {"oracle": Oracle()}, tmp_path / "out", level="layout")


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


def _killed_at(tasks_before: int, data: MMDocIR, rankers: dict[str, Any]) -> Any:
    def engine(tasks: Sequence[Task]) -> Iterator[Any]:
        done = 0
        for task in tasks:
            for part in measure_document(data, task, rankers, "page"):
                if done == tasks_before:
                    raise Kill
                done += 1
                yield part

    return engine


@pytest.mark.parametrize("before", [0, 1, 3, 5])
def test_a_killed_run_ends_with_the_same_rows(data: MMDocIR, tmp_path: Path, before: int) -> None:
    rankers = {"oracle": Oracle(), "random": RandomRanker()}
    evaluate(data, rankers, tmp_path / "whole")
    with pytest.raises(Kill):
        evaluate(data, rankers, tmp_path / "out", engine=_killed_at(before, data, rankers))
    kept = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.json")}
    assert len(kept) == before + 1  # and the settings
    assert not (tmp_path / "out" / "rows.jsonl").exists()
    oracle = Oracle()
    evaluate(data, rankers | {"oracle": oracle}, tmp_path / "out", resume=True)
    assert len(oracle.asked) == 3 - (before + 1) // 2
    assert (tmp_path / "out" / "rows.jsonl").read_bytes() == (tmp_path / "whole" / "rows.jsonl").read_bytes()
    for path, content in kept.items():
        assert path.read_bytes() == content


def test_an_unfinished_write_is_no_result(data: MMDocIR, tmp_path: Path) -> None:
    evaluate(data, {"oracle": Oracle()}, tmp_path / "out")
    torn = tmp_path / "out" / "parts" / "oracle"
    (torn / "00002.json").rename(torn / ".00002.json.1234.tmp")
    again = Oracle()
    evaluate(data, {"oracle": again}, tmp_path / "out", resume=True)
    assert again.asked == ["b.pdf"]


def test_a_finished_run_is_not_run_again(data: MMDocIR, tmp_path: Path) -> None:
    evaluate(data, {"oracle": Oracle()}, tmp_path / "out")
    again = Oracle()
    evaluate(data, {"oracle": again}, tmp_path / "out", resume=True)
    assert again.asked == []
    with pytest.raises(DataError, match="holds a run already"):
        evaluate(data, {"oracle": Oracle()}, tmp_path / "out")


def test_rankers_may_be_added_to_a_run(data: MMDocIR, tmp_path: Path) -> None:
    evaluate(data, {"oracle": Oracle()}, tmp_path / "out")
    found = evaluate(data, {"oracle": Oracle(), "random": RankerSpec("random")}, tmp_path / "out", resume=True)
    assert set(found.summaries) == {"oracle", "random"}
    assert set(json.loads((tmp_path / "out" / "settings.json").read_text())["rankers"]) == {"oracle", "random"}


def test_other_settings_are_refused_with_the_difference(data: MMDocIR, tmp_path: Path) -> None:
    evaluate(data, {"random": RankerSpec("random", seed=1)}, tmp_path / "out", settings={"max_pixels": 7})
    with pytest.raises(DataError, match=r"rankers\.random\.seed: was 1, now 2"):
        evaluate(data, {"random": RankerSpec("random", seed=2)}, tmp_path / "out", resume=True)
    with pytest.raises(DataError, match=r"dataset\.max_pixels: was 7, now 8") as error:
        evaluate(data.first(2), {"x": Oracle()}, tmp_path / "out", resume=True, settings={"max_pixels": 8})
    assert "dataset.documents: was 3, now 2" in str(error.value)
    with pytest.raises(DataError, match="level: was 'page', now 'layout'"):
        evaluate(data, {"x": Oracle()}, tmp_path / "out", resume=True, level="layout", settings={"max_pixels": 7})


def test_folders_that_hold_something_else_are_left_alone(data: MMDocIR, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not empty and holds no run"):
        evaluate(data, {"oracle": Oracle()}, tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="can't be made"):
        evaluate(data, {"oracle": Oracle()}, tmp_path / "file")
    evaluate(data, {"oracle": Oracle()}, tmp_path / "out")
    parts = tmp_path / "out" / "parts" / "oracle"
    (parts / "00001.json").write_bytes((parts / "00002.json").read_bytes())
    with pytest.raises(DataError, match=r"holds b\.pdf under oracle"):
        evaluate(data, {"oracle": Oracle()}, tmp_path / "out", resume=True)


def test_settings_know_model_heads_and_versions(data: MMDocIR, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "heads.json").write_text("{}")
    spec = RankerSpec("heads", model=str(model), heads=str(tmp_path / "heads.json"), calibrate=False, token_budget=9)
    about = settings_of(data, {"selected": spec}, level="page").rankers["selected"]
    assert about["model"] == str(model)
    assert (about["calibrate"], about["token_budget"]) == (False, 9)
    (model / "README.md").write_text("a word more")
    (model / HEADS_FILE).write_text("{}")
    assert settings_of(data, {"selected": spec}, level="page").rankers["selected"] == about
    beside = settings_of(data, {"selected": replace(spec, heads="published")}, level="page").rankers["selected"]
    assert beside["heads_fingerprint"] == about["heads_fingerprint"]
    (model / "config.json").write_text("{ }")
    changed = settings_of(data, {"selected": spec}, level="page").rankers["selected"]
    assert changed["model_fingerprint"] != about["model_fingerprint"]
    assert changed["heads_fingerprint"] == about["heads_fingerprint"]
    bm25 = settings_of(data, {"bm25": RankerSpec("bm25", device="cuda")}, level="page").rankers["bm25"]
    assert bm25 == {"kind": "bm25"}
    found = settings_of(data, {"x": Oracle()}, level="page")
    assert found.rankers == {"x": {"class": "Oracle"}}
    assert {"torch", "transformers", "mmrh_retriever", "python"} <= set(found.versions)


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


@pytest.fixture
def found(data: MMDocIR, tmp_path: Path) -> Evaluation:
    return evaluate(data, {"oracle": Oracle(), "random": RankerSpec("random")}, tmp_path / "out")


def test_tables_compare_rankers(found: Evaluation) -> None:
    heads, rows = comparison_rows(found)
    assert heads[:3] == ["ranker", "micro R@1", "micro R@3"]
    assert heads[-1] == "oracle above it, R@1"
    assert rows[0][1] == "100.0 (100.0 to 100.0)"
    assert rows[0][-1] == ""
    assert "p = " in rows[1][-1]
    names, lines = turned(heads, rows)
    assert names == ["ranker", "oracle", "random"]
    assert lines[0][:2] == ["micro R@1", "100.0\n(100.0 to 100.0)"]
    heads, rows = group_rows(found, "by_domain", "recall@3")
    assert heads == ["domain", "questions", "oracle R@3", "random R@3"]
    assert [row[:3] for row in rows] == [["Law", "5", "100.0"], ["News", "4", "100.0"]]
    assert as_rich(heads, rows).row_count == 2
    report = markdown_report(found)
    assert "| scan | 3 | 100.0 |" in report
    assert "9 questions, page level" in report
    assert found.as_dict("oracle")["by_domain"]["Law"]["recall@1"] == 1


def test_intervals_by_source(found: Evaluation) -> None:
    assert found.interval("oracle", "recall@1", source="scan").mean == 1
    macro = found.interval("random", "recall@1", macro=True)
    assert macro.mean == pytest.approx(found.summaries["random"].macro["recall@1"])


def test_the_plot_is_a_picture(found: Evaluation, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install matplotlib for plots")
    from PIL import Image

    plot_comparison(found, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert min(image.size) > 300


def test_run_folders_are_read_back(data: MMDocIR, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out", settings_of(data, {"x": Oracle()}, level="page"), resume=False)
    assert folder.load("x", 1, "a.pdf") is None
    (tmp_path / "rows.jsonl").write_text('{"ranker": 1}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1"):
        list(read_rows(tmp_path / "rows.jsonl"))
