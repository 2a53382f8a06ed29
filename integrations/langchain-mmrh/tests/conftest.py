from __future__ import annotations

from pathlib import Path

import pymupdf
import pytest
from tests.ranking_stub import StubReranker, stub


@pytest.fixture
def reranker() -> StubReranker:
    return stub()


@pytest.fixture
def pdf(tmp_path: Path) -> Path:
    document = pymupdf.open()
    for number, word in enumerate(("harbour", "lifeboat", "")):
        page = document.new_page(width=200, height=300)
        page.insert_text((20, 40), word)
        page.draw_rect((0, 100, 200, 100 + 60 * number), fill=(0, 0, 0))
    document.save(tmp_path / "report.pdf")
    return tmp_path / "report.pdf"
