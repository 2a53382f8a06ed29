from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from mmrh_retriever.pdf import backends, close_documents
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


@pytest.fixture(params=["pymupdf", "pdfium"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each library in its turn, as the one that ``backend="auto"`` takes."""
    monkeypatch.setattr(backends, "_preferred", lambda: request.param)
    return str(request.param)
