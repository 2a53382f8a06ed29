"""Evaluations on generated PDFs: measures, resuming after a kill, settings, tables and plots."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pymupdf
import pytest
import torch
from rich.console import Console

from mmrh_retriever import Page
from mmrh_retriever.errors import DataError, MMRHError
from mmrh_retriever.evaluation.documents import Task, measure_document
from mmrh_retriever.evaluation.evaluate import Evaluation, evaluate, read_run, settings_of
from mmrh_retriever.evaluation.mmdocir.dataset import MMDocIR
from mmrh_retriever.evaluation.rankers import RandomRanker, RankerSpec, Scores, listed_regions
from mmrh_retriever.evaluation.rows import RunFolder, read_rows
from mmrh_retriever.evaluation.tables import (
    as_rich,
    comparisons,
    group_table,
    label,
    markdown_report,
    notes,
    overall_table,
    plot_comparison,
    result_tables,
    source_table,
)
from mmrh_retriever.model.loading import HEADS_FILE

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


def _dies_at(step: int, run: Callable[[], object]) -> bool:
    """Whether a process of its own, sent SIGKILL when it touches the disk for the ``step``-th time, was killed."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.WIFSIGNALED(status)
    left = itertools.count(step, -1)

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    try:
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "mkdir"), (Path, "unlink")):
            setattr(owner, name, watched(getattr(owner, name)))
        run()
    finally:
        os._exit(0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork, to kill a process at an exact moment")
def test_a_process_killed_at_any_moment_ends_with_the_same_rows(data: MMDocIR, tmp_path: Path) -> None:
    rankers = {"oracle": Oracle(), "random": RandomRanker()}
    evaluate(data, rankers, tmp_path / "whole")
    names = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*"))
    steps = 0
    for steps in itertools.count():
        out = tmp_path / str(steps)
        if not _dies_at(steps, lambda out=out: evaluate(data, rankers, out)):
            break
        kept = {path: path.read_bytes() for path in out.rglob("0*.json")}
        evaluate(data, rankers, out, resume=True)
        assert (out / "rows.jsonl").read_bytes() == (tmp_path / "whole" / "rows.jsonl").read_bytes()
        assert sorted(path.relative_to(out) for path in out.rglob("*")) == names  # nothing half written is left
        assert all(path.read_bytes() == content for path, content in kept.items())
    assert steps > 30  # nine files are written and moved, and their folders made


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
    assert about["dtype"] == ("auto" if torch.cuda.is_available() or torch.backends.mps.is_available() else "float32")
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


def test_the_table_of_all_rankers(found: Evaluation) -> None:
    table = overall_table(found)
    assert table.title == "Page level: 9 questions about 3 documents, in %"
    assert table.heads[:2] == ("", "micro R@1")
    assert table.heads[-1] == "macro R@5"
    oracle, random = table.rows
    assert [cell.text for cell in oracle[:3]] == ["oracle", "100.0 (100.0–100.0)", "100.0 (100.0–100.0)"]
    assert oracle[1].best
    assert not random[1].best
    assert {oracle[3].best, random[3].best} == {False}  # both find all within five pages
    assert random[4].text == f"{100 * found.summaries['random'].macro['recall@1']:.1f}"


def test_documents_with_and_without_text_stand_apart(found: Evaluation) -> None:
    table = source_table(found)
    assert table.title == "By text layer, micro: text layer 6 questions, scan 3 questions"
    assert table.heads[1:5:3] == ("text layer R@1", "scan R@1")
    assert [cell.text for cell in table.rows[0][4:]] == ["100.0 (100.0–100.0)", "100.0", "100.0"]


def test_groups_are_rows(found: Evaluation) -> None:
    table = group_table(found, "by_domain", "recall@3")
    assert table.heads == ("domain", "questions", "oracle", "random")
    assert [[cell.text for cell in row[:3]] for row in table.rows] == [["Law", "5", "100.0"], ["News", "4", "100.0"]]
    assert group_table(found, "by_type").title == "R@1 by evidence, in %"
    assert len(result_tables(found)) == 4


def test_differences_are_told_in_words(found: Evaluation) -> None:
    (sentence,) = comparisons(found)
    apart = found.compare("oracle", "random", "recall@1")
    assert sentence.startswith(f"oracle {100 * apart.difference:.1f} points above random in R@1 (95 % +")
    assert sentence.endswith("significant at 5 %)")
    turned = Evaluation("page", dict(reversed(found.parts.items())), dict(reversed(found.summaries.items())))
    assert "points below oracle" in comparisons(turned)[0]
    assert label("bm25") == "BM25"


def test_tables_in_the_terminal_and_in_markdown(found: Evaluation) -> None:
    console = Console(width=100, file=io.StringIO())
    for table in result_tables(found):
        shown = as_rich(table)
        assert shown.row_count == len(table.rows)
        assert console.measure(shown).maximum <= 100
        console.print(shown)
    text = console.file.getvalue()
    assert "100.0 (100.0–100.0)*" in text
    assert "…" not in text
    report = markdown_report(found)
    assert "| oracle | **100.0 (100.0–100.0)** |" in report
    assert "Page level: 9 questions" in report
    assert f"- {notes(found)[0]}" in report
    assert found.as_dict("oracle")["by_domain"]["Law"]["recall@1"] == 1


def test_one_ranker_alone_is_not_the_best(data: MMDocIR, tmp_path: Path) -> None:
    alone = evaluate(data, {"oracle": Oracle()}, tmp_path / "alone")
    assert not any(cell.best for table in result_tables(alone) for row in table.rows for cell in row)
    assert comparisons(alone) == []


def test_finished_runs_are_read_back(found: Evaluation, tmp_path: Path) -> None:
    again = read_run(tmp_path / "out")
    assert again == found
    assert list(again.parts) == ["oracle", "random"]
    (tmp_path / "out" / "parts" / "random" / "00002.json").unlink()
    with pytest.raises(DataError, match="holds 7 rows, expected the 9"):
        read_run(tmp_path / "out")
    (tmp_path / "out" / "rows.jsonl").unlink()
    with pytest.raises(DataError, match="was not finished"):
        read_run(tmp_path / "out")
    with pytest.raises(DataError, match=r"settings\.json"):
        read_run(tmp_path)


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
