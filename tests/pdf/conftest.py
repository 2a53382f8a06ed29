from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from mmrh_retriever.pdf import close_documents
from tests.pdf.made_pdfs import make_pdf


@pytest.fixture(autouse=True)
def _nothing_left_open() -> Iterable[None]:
    yield
    close_documents()


@pytest.fixture
def three(tmp_path: Path) -> Path:
    path = tmp_path / "three.pdf"
    path.write_bytes(make_pdf(["First page", "Second page", "Third page"]))
    return path
