"""The benchmark of a text decoder's heads runs on a tiny model and goes on where it stopped."""

from __future__ import annotations

import importlib.util
import json
from argparse import Namespace
from pathlib import Path

import pymupdf
import pytest

from mmrh_retriever import HeadSet
from tests.factories import tiny

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "smollm2_text_heads.py"


@pytest.fixture
def arguments(tmp_path: Path) -> Namespace:
    made = pymupdf.open()
    for word in ("revenue grew", "emissions fell", "staff left"):
        made.new_page(width=200, height=300).insert_text((20, 50), word)
    made.save(tmp_path / "a.pdf")
    record = {"doc_name": "a.pdf", "questions": [{"Q": "Which emissions?", "page_id": [1]}]}
    (tmp_path / "annotations.jsonl").write_text(json.dumps(record) + "\n")
    return Namespace(
        annotations=tmp_path / "annotations.jsonl", documents=tmp_path, out=tmp_path / "out", lengths=[500, 700],
        examples=2, depths=1, page_tokens=40, window_pages=2, most_pages=9, limit=None, seed=0, causal=1,
        random_seeds=1,
    )  # fmt: skip


@pytest.mark.slow
def test_detection_masking_and_ranking(arguments: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("benchmark_smollm2_text_heads", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arguments.out.mkdir()
    model = tiny("llama")
    table = module.detected(model.model, model.tokenizer, arguments)
    assert table.context_lengths == (500, 700)
    shown = capsys.readouterr().out
    assert "| 700 | 2 |" in shown
    best = HeadSet.parse("0-1, 2-3", n_layers=3, n_heads=4)
    module.masked(model.model, model.tokenizer, best, arguments)
    assert capsys.readouterr().out.count("| text | unmasked |") == 2
    for _ in range(2):  # the second time nothing runs
        module.ranked(model.model, model.tokenizer, {"selected": [best], "all": [HeadSet.all_heads(3, 4)]}, arguments)
        kept = (arguments.out / "ranking" / "journal.jsonl").read_text().splitlines()
        assert [json.loads(line)["document"] for line in kept] == ["a.pdf"]
    first, again = (part for part in capsys.readouterr().out.split("1 documents, 3 pages, 1 questions") if "|" in part)
    assert first.strip() == again.strip()
