"""The sample report of the examples: as committed, small, and what its questions ask is on their pages."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from mmrh_retriever.pdf.reader import read_pdf
from mmrh_retriever.types import Page

EXAMPLES = Path(__file__).parents[2] / "examples"
ANSWERS = {
    3: "42.6",
    2: "stone pier at Skerry Island",
    5: "120 hours",
    4: "19.7",
    6: "Grey Heron 2011 450 17 Diesel Kelso Bay",
    9: "Open the claim form",
    8: "One ticket",
    11: "18,000 crowns",
}


@pytest.fixture(scope="module")
def pages() -> list[Page]:
    return read_pdf(EXAMPLES / "sample_report.pdf")


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_sample_pdf", EXAMPLES / "make_sample_pdf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_report_is_small_and_varied(pages: list[Page]) -> None:
    assert (EXAMPLES / "sample_report.pdf").stat().st_size < 500_000
    assert 8 <= len(pages) <= 12
    assert len({page.size for page in pages}) == 2
    assert [page.number for page in pages if page.text is None] == [7]


def test_questions_name_pages_that_answer_them(pages: list[Page]) -> None:
    questions = json.loads((EXAMPLES / "sample_questions.json").read_text())
    assert [question["page"] for question in questions[:3]] == [7, 3, 2]
    assert {question["page"] for question in questions} == {*ANSWERS, 7}
    for number, answer in ANSWERS.items():
        holders = [page.number for page in pages if answer in " ".join((page.text or "").split())]
        assert holders == [number]


def test_the_script_makes_the_committed_report(maker: ModuleType, pages: list[Page]) -> None:
    made = maker.make()
    assert made == maker.make()
    again = read_pdf(made)
    assert [page.text for page in again] == [page.text for page in pages]
    assert [page.size for page in again] == [page.size for page in pages]
