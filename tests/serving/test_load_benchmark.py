"""The load's script finds no wrong answer of a server, and would find one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")

from mmrh_retriever import PageStore, Reranker
from tests.serving.conftest import small_pages
from tests.serving.held_model import running


@pytest.mark.asyncio
async def test_a_short_load(bundled: Reranker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "serving_load.py"
    spec = importlib.util.spec_from_file_location("serving_load", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "serving_load", script)  # where its dataclass looks for its annotations
    spec.loader.exec_module(script)
    pdf = tmp_path / "pages.pdf"
    pdf.write_bytes(small_pages("Revenue rose.", "The ferry is green."))
    expected = script.expected_of(bundled.with_store(PageStore()), pdf)
    async with running(bundled.with_store(None)) as (_, client):
        load, joined = await script.loaded(client, pdf, expected, clients=3, seconds=1.0)
    assert (load.wrong, len(load.seconds) > 3, joined >= 1) == (0, True, True)
    question, scores = next(iter(expected.items()))
    load.compare(question, [{"page": page, "score": score + 0.01} for page, score in scores.items()])
    load.compare(question, [{"page": 1, "score": scores[1]}])
    assert load.wrong == 2
