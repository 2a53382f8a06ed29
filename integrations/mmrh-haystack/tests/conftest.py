from __future__ import annotations

import os
from pathlib import Path

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when haystack is imported

import pymupdf
import pytest
from tests.ranking_stub import StubReranker, stub


@pytest.fixture
def reranker() -> StubReranker:
    return stub()


@pytest.fixture
def pdf(tmp_path: Path) -> Path:
    document = pymupdf.open()
    for number, words in enumerate(("harbour wall", "lifeboat crew", "lantern room")):
        page = document.new_page(width=200, height=300)
        page.insert_text((20, 40), words)
        page.draw_rect((0, 100, 200, 100 + 60 * number), fill=(0, 0, 0))
    document.save(tmp_path / "report.pdf")
    return tmp_path / "report.pdf"
