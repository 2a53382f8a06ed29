"""The example that runs an MTEB reranking task: MTEB's figures are those of the reranker's own rankings."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mmrh_retriever import Page, Reranker, read_pdf
from tests import factories

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return factories.tiny("qwen3_vl").save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("mteb", reason="mteb is not installed: pip install mteb")
    spec = importlib.util.spec_from_file_location("mteb_reranking", EXAMPLES / "mteb_reranking.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mteb_reranking", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("reads", ["text", "image"])
def test_mteb_measures_the_rankings_of_the_reranker(
    example: ModuleType, saved: Path, reads: str, capsys: pytest.CaptureFixture[str]
) -> None:
    example.main(["--model", str(saved), "--heads", "all", *(["--images"] if reads == "image" else [])])
    shown = {name: float(value) for name, value in re.findall(r"(\w+): ([\d.]+)", capsys.readouterr().out)}
    asked = json.loads((EXAMPLES / "sample_questions.json").read_text(encoding="utf-8"))
    pages = [page for page in read_pdf(EXAMPLES / "sample_report.pdf") if reads == "image" or page.text]
    listed = [Page(text=page.text) if reads == "text" else page.pixels() for page in pages]
    reranker = Reranker.from_pretrained(saved, heads="all")
    ranks = []
    for it in asked:
        order = [pages[scored.position].number for scored in reranker.rank(it["question"], listed)]
        ranks += [1 + order.index(it["page"])] if it["page"] in order else []
    assert len(ranks) == (9 if reads == "image" else 8)
    assert shown["hit_rate_at_1"] == pytest.approx(np.mean(np.array(ranks) <= 1), abs=1e-4)
    assert shown["hit_rate_at_3"] == pytest.approx(np.mean(np.array(ranks) <= 3), abs=1e-4)
    assert shown["mrr_at_10"] == pytest.approx(np.mean([1 / rank if rank <= 10 else 0 for rank in ranks]), abs=1e-4)
