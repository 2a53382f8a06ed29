"""The benchmark scripts run from end to end on tiny models, go on where they stopped, and print Markdown tables."""

from __future__ import annotations

import importlib.util
import json
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pymupdf
import pytest

from mmrh_retriever import HeadSet
from mmrh_retriever.model.loading import HEADS_FILE
from tests.factories import tiny

FOLDER = Path(__file__).parents[1] / "benchmarks"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tables(text: str) -> list[list[str]]:
    """The lines of each Markdown table."""
    found: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    made = tiny("qwen3_vl")
    for part in (made.model, made.tokenizer, made.image_processor):
        part.save_pretrained(folder)
    HeadSet.all_heads(3, 4).save(folder / HEADS_FILE)
    return folder


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    lines = []
    for name in ("a.pdf", "b.pdf"):
        made = pymupdf.open()
        for word in ("revenue grew", "emissions fell"):
            made.new_page(width=200, height=300).insert_text((20, 50), word, fontsize=16)
        made.save(tmp_path / name)
        layout = [{"page": 1, "page_size": [200, 300], "bbox": [15, 35, 150, 60]}]
        question = {"Q": "Which emissions?", "A": "", "page_id": [1], "type": "[]", "layout_mapping": layout}
        lines.append(json.dumps({"doc_name": name, "domain": "News", "questions": [question]}))
    (tmp_path / "annotations.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.slow
def test_region_aggregation(
    model: Path, documents: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["x", "--annotations", str(documents / "annotations.jsonl"), "--documents", str(documents)]
    arguments += ["--out", str(documents / "out"), "--model", str(model), "--crops-every", "2"]
    monkeypatch.setattr(sys, "argv", arguments)
    module = script("region_aggregation")
    assert module.main() == 0
    shown = capsys.readouterr().out
    assert "2 documents, 4 pages" in shown
    assert "1 documents with crops" in shown
    every, cropped = tables(shown)
    assert [line.split("|")[1].strip() for line in every[2:]] == [
        "`sum` (default)", "`mean`", "`sqrt_area`", "`peak`", "largest first", "random",
    ]  # fmt: skip
    assert "each box as an image" in "".join(cropped)
    monkeypatch.setattr(module, "page_pass", None)  # kept: nothing runs a second time
    assert module.main() == 0
    assert tables(capsys.readouterr().out) == [every, cropped]
    HeadSet.all_heads(3, 4).up_to_layer(1).save(documents / "fewer.json")
    monkeypatch.setattr(sys, "argv", [*arguments, "--heads", str(documents / "fewer.json")])
    with pytest.raises(SystemExit, match="another run"):
        module.main()


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_adapter_documents(model: Path, documents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--annotations", str(documents / "annotations.jsonl"), "--documents", str(documents), "--name", "a.pdf"]
    script("adapter_documents").main([*given, "--model", str(model)])
    (table,) = tables(capsys.readouterr().out)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[2:]]
    assert [row[0] for row in rows] == [
        "text chunks", "PyMuPDF's chunks", "Unstructured's chunks", "Docling's chunks", "image nodes",
    ]  # fmt: skip
    assert {tuple(row[1:4]) for row in rows} == {("2", "1", "1")}  # two pages; BM25 finds the one question's
    assert {len(row) for row in rows} == {8}
    assert len({tuple(row[4:]) for row in rows[1:4]}) == 1  # every loader's chunks lead to the same page images


@pytest.mark.slow
def test_bundled_heads(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = "--lengths 900 1200 --shares 0 0.2 --examples 2 --depths 1 --causal 1 --random-seeds 1 --top 0.2"
    monkeypatch.setattr(sys, "argv", ["x", "--model", str(model), "--out", str(tmp_path / "out"), *few.split()])
    script("bundled_heads").main()
    properties, between_tasks, between_lengths, between_shares, causal = tables(capsys.readouterr().out)
    assert len(properties) == 2 + 4 * 2  # tasks, lengths
    assert len(between_tasks) == len(between_lengths) == 2 + 4
    assert len(between_shares) == 2 + 2
    assert len(causal) == 2 + 2 * 4  # two tasks, four maskings


def test_the_ranking_table_of_text_heads() -> None:
    found = {"selected (1)": [[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]], "all (9)": [[0.0, 0.0, 1.0], [0.0, 1.0, 1.0]]}
    records = [{"document": name, "pages": 5, "recalls": found} for name in "ab"]
    shown = script("smollm2_text_heads").ranking_table(records, Namespace(page_tokens=7, window_pages=2))
    assert "2 documents, 10 pages, 4 questions" in shown
    (table,) = tables(shown)
    assert table[2] == "| selected (1) | 50.0 (50.0 to 50.0) | 100.0 | 100.0 |  |"
    assert "+50.0 (+50.0 to +50.0), p = " in table[3]
