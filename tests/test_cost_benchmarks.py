"""The benchmark scripts do what they say, at the smallest sizes."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pymupdf
import pytest
import torch

from mmrh_retriever import Library, Reranker, read_pdf
from mmrh_retriever.benchmark.pairs import sample_pages
from tests.factories import tiny

FOLDER = Path(__file__).parent.parent / "benchmarks"


def script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / f"{name}.py"))


def test_each_question_has_one_page_that_answers_it() -> None:
    data = script("windows_and_order")["collection"](pages=6, questions=9, seed=3, max_pixels=20_000)
    assert len(data.questions) == len(data.gold) == 9
    assert len(set(data.gold)) == 6
    for question, index in zip(data.questions, data.gold, strict=True):
        name = next(word for word in question.split(" the ", 1)[1].split("?")[0].split() if word[0].isupper())
        subject = question.split(" the ", 1)[1].partition(name)[0] + name
        holding = [number for number, page in enumerate(data.pages) if f"The {subject} " in page.text]
        assert holding == [index], question
        assert data.pages[index].pixels().width <= 200


def test_recall_has_its_interval() -> None:
    found = script("windows_and_order")["measures"](np.array([1, 1, 2, 9]))
    assert (found["recall@1"], found["recall@5"], found["mrr"]) == pytest.approx((0.5, 0.75, (2 + 1 / 2 + 1 / 9) / 4))
    assert 0 <= found["interval"][0] <= 0.5 <= found["interval"][1] <= 1


def test_every_table_of_order_and_windows_has_its_rows() -> None:
    names = script("windows_and_order")
    data = names["collection"](pages=4, questions=4, seed=0, max_pixels=8_000)
    model = tiny("qwen3_vl")
    make = names["Maker"](Reranker(model.model, (model.tokenizer, model.image_processor), "all", token_budget=620))
    assert [row["encoding"] for row in names["encoding"](make, data)] == ["together", "alone"]
    assert [row["scores"] for row in names["windows"](make, data, 2, False)] == ["raw", "final round of 2"]
    at = names["positions"](make, data, 1, True)
    assert [(row["position"], row["questions"]) for row in at] == [(position, 4) for position in range(1, 5)]
    orders = names["order"](make, data, 1, True)
    assert [row["order"] for row in orders] == ["as it is", "reversed", "shuffled 1"]
    assert orders[0]["rank correlation"] == pytest.approx(1)
    assert [row["max_layer"] for row in names["depth"](make, data, False)] == [0, 1, 2]


def test_memory_is_measured_on_the_real_path() -> None:
    found = script("memory_128k")["ask"](600, 4, 2, 5, torch.float32)
    assert found["passes"] == 1
    assert found["held_mib"] == pytest.approx(2 * 8 * 620 * 128 * 4 / 2**20)
    assert found["above_mib"] >= 0
    assert 0.9 < found["mean_mass"] <= 1, "random keys: nearly all attention lies on the kept ones"


def test_cost_is_measured_and_drawn(tmp_path: Path) -> None:
    names = script("pages_and_questions")
    inside = names["by_pages"].__globals__
    inside["sample_pages"] = lambda count: sample_pages(count, side=(96, 128))
    model = tiny("qwen3_vl")
    reranker = Reranker(model.model, (model.tokenizer, model.image_processor), "all", token_budget=620)
    pages = names["by_pages"](reranker, [1, 2], 1, 1)
    assert [("plain" in row, row["first"] > 0, row["further"] > 0) for row in pages] == [
        (True, True, True),
        (False, True, True),
    ]
    questions = names["by_questions"](reranker, 2, [1, 3], 1)
    assert [row["questions"] for row in questions] == [1, 3]
    assert names["linear"](reranker, 4, 2, 1)["whole_against_parts"] > 0
    names["plot"](pages, questions, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_stages_count_their_own_time_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = script("where_time_goes")["Stages"]()
    clock = iter([0.0, 1.0, 4.0, 5.0, 6.0, 10.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    with stages.of("outer"):
        with stages.of("inner"):
            pass
        with stages.of("inner"):
            pass
    assert dict(stages.seconds) == {"inner": 4.0, "outer": 6.0}


def test_stages_of_a_question_are_found_in_the_engine() -> None:
    names = script("where_time_goes")
    model = tiny("qwen3_vl")
    reranker = Reranker(model.model, (model.tokenizer, model.image_processor), "all")
    pages = sample_pages(2, side=(96, 128))
    wall, stages = names["by_stage"](reranker.backbone.decoder, lambda: reranker.rank("How did revenue change?", pages))
    assert sorted(stages) == [
        "attention", "decoder but attention", "everything else", "images to patches, prompt", "recording rows",
        "vision tower",
    ]  # fmt: skip
    assert all(seconds > 0 for seconds in stages.values())
    assert sum(stages.values()) == pytest.approx(wall, rel=0.05)


def test_real_shapes_are_measured_beside_their_plan() -> None:
    names = script("real_shapes")
    names["measure"].__globals__["SIDE"] = (96, 128)
    model = tiny("qwen3_vl")
    reranker = Reranker(model.model.bfloat16(), (model.tokenizer, model.image_processor), "all")
    measured, planned = names["measure"](reranker, pages=2, rounds=1)
    assert [row[0].text for row in measured.rows][:2] == ["a bare forward pass, all layers", "ours, first question"]
    assert [row[3].text for row in planned.rows[:3]] == ["1.0000"] * 3
    assert all(0.9 < float(row[3].text) < 1.1 for row in planned.rows)
    ranked = reranker.rank("How did revenue change?", sample_pages(2, side=(96, 128)))
    assert len(ranked) == 2, "the model is as it was"


def test_a_library_of_pages_with_text_is_added_and_opened_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source.pdf"
    made = pymupdf.open()
    for text in ("one two three four five six", "", "seven eight nine ten eleven twelve"):
        made.new_page(width=200, height=300).insert_text((20, 40), text)
    made.save(source)
    benchmark = script("library")
    benchmark["main"](
        [
            str(source),
            "--pages",
            "53",
            "--steps",
            "add",
            "open",
            "--page-pixels",
            "9000",
            "--folder",
            str(tmp_path / "x"),
        ]
    )
    table = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].split(",")[0].strip() for line in table[2:]] == ["add: read all files", "open again"]
    documents = sorted((tmp_path / "x" / "documents").glob("*.pdf"))
    assert [len(pages) for pages in map(read_pdf, documents)] == [50, 3]
    assert all(page.text for page in read_pdf(documents[0]))
    library = Library(documents)
    asked = list(benchmark["questions"](library, 5, 1))
    assert len({*asked}) == 5
    parts = [(2.0, 1.0), (3.0, 2.0), (5.0, 4.0), (7.0, 6.0)]
    rows = benchmark["rows"]("questions", parts, 600.0, 53)
    assert [row.split("|")[2].strip() for row in rows] == ["2.00 (1.00)", "3.00 (2.00)", "6.00 (5.00)", "7.00 (6.00)"]
