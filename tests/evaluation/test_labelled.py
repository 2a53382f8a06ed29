"""Labelled questions about any documents: what is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pymupdf
import pytest
from PIL import Image

from mmrh_retriever.baselines import RankerSpec
from mmrh_retriever.errors import DataError
from mmrh_retriever.evaluation import evaluate
from mmrh_retriever.evaluation.labelled import read_labelled

GOOD = {"document": "a.pdf", "question": "pear", "pages": [2]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = pymupdf.open()
    for word in ("apple", "pear", "plum"):
        made.new_page(width=200, height=300).insert_text((20, 50), word, fontsize=16)
    (tmp_path / "papers").mkdir()
    made.save(tmp_path / "a.pdf")
    made.save(tmp_path / "papers" / "b.pdf")
    (tmp_path / "slides").mkdir()
    for number in (1, 2, 10):
        Image.new("RGB", (number + 20, 60), "white").save(tmp_path / "slides" / f"page-{number}.png")
    Image.new("RGB", (40, 60), "white").save(tmp_path / "photo.JPG")
    return tmp_path


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_pages_count_from_one_and_documents_gather_their_lines(folder: Path) -> None:
    lines = write(
        folder,
        GOOD,
        {"document": "papers/b.pdf", "question": "plum", "pages": [3], "answer": "left alone"},
        "",
        {"document": "a.pdf", "question": "Which fruit?", "pages": [3, 1]},
    )
    data = read_labelled(lines, folder)
    assert [(item.name, item.line) for item in data.documents] == [("a.pdf", 1), ("papers/b.pdf", 2)]
    first = data.documents[0]
    assert [(item.number, item.text, item.pages) for item in first.questions] == [
        (0, "pear", (1,)),
        (1, "Which fruit?", (2, 0)),
    ]
    assert [(page.number, page.text) for page in data.pages(first)] == [(1, "apple"), (2, "pear"), (3, "plum")]
    assert data.pages(data.documents[1])[0].doc_id == "papers/b.pdf"
    other = read_labelled(write(folder, {**GOOD, "pages": [1]}), folder)
    assert other.fingerprint != read_labelled(write(folder, GOOD), folder).fingerprint


def test_images_and_folders_of_images_are_documents(folder: Path) -> None:
    lines = write(folder, {**GOOD, "document": "slides", "pages": [3]}, {**GOOD, "document": "photo.JPG", "pages": [1]})
    slides, photo = (read_labelled(lines, folder).pages(item) for item in read_labelled(lines, folder).documents)
    assert [(page.index, page.size) for page in slides] == [(0, (21, 60)), (1, (22, 60)), (2, (30, 60))]
    assert [page.doc_id for page in photo] == ["photo.JPG"]


def test_a_run_measures_and_goes_on(folder: Path) -> None:
    data = read_labelled(write(folder, GOOD, {**GOOD, "document": "papers/b.pdf", "question": "plum?"}), folder)
    found = evaluate(data, {"bm25": RankerSpec("bm25")}, folder / "out")
    assert found.values("bm25", "recall@1").tolist() == [1.0, 0.0]
    again = evaluate(data, {"bm25": RankerSpec("bm25")}, folder / "out", resume=True)
    assert again.parts == found.parts


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], "holds no questions. Expected one JSON object per line: document, question, pages"),
        (["{"], "line 1: not a valid labelled question"),
        ([GOOD, {**GOOD, "question": " "}], "line 2: .*question: .*expected a text that is not empty"),
        ([{**GOOD, "pages": []}], "line 1: .*pages: List should have at least 1 item"),
        ([{**GOOD, "pages": [0]}], r"pages.0: Input should be greater than or equal to 1 \(got '0'\)"),
        ([{**GOOD, "pages": ["2"]}], "pages.0: Input should be a valid integer"),
        ([{**GOOD, "pages": [2, 1, 2]}], r"pages \[2\] stand there twice; expected each once"),
        ([{**GOOD, "document": "../a.pdf"}], "expected the name of a file or folder below the documents' folder"),
        ([{**GOOD, "document": "c.pdf"}], "line 1: 'c.pdf' is no PDF, image or folder of images in "),
        ([{**GOOD, "document": "papers"}], "'papers' is no PDF, image or folder of images in "),
        ([GOOD, {**GOOD, "pages": [4]}], "line 2: the question 'pear' about a.pdf stands on line 1 already"),
        ([GOOD, {**GOOD, "question": "x", "pages": [1, 4]}], "line 2: got page 4 of a.pdf, expected numbers from 1 to"),
        ([{**GOOD, "document": "slides", "pages": [4]}], "got page 4 of slides, expected numbers from 1 to 3"),
    ],
)
def test_refused_lines_are_named(folder: Path, lines: list[Any], expected: str) -> None:
    with pytest.raises(DataError, match=f"questions.jsonl.*{expected}"):
        read_labelled(write(folder, *lines), folder)


def test_missing_documents_count_as_zero_if_allowed(folder: Path) -> None:
    data = read_labelled(write(folder, GOOD, {**GOOD, "document": "c.pdf"}), folder, allow_missing=True)
    found = evaluate(data, {"bm25": RankerSpec("bm25")}, folder / "out")
    assert found.values("bm25", "recall@1").tolist() == [1.0, 0.0]
    assert "no such PDF, image or folder of images" in found.failed["c.pdf"]
    with pytest.raises(DataError, match="none: no such folder"):
        read_labelled(folder / "questions.jsonl", folder / "none")


def test_an_unreadable_document_counts_as_zero(folder: Path) -> None:
    (folder / "a.pdf").write_bytes(b"no PDF")
    found = evaluate(read_labelled(write(folder, GOOD), folder), {"bm25": RankerSpec("bm25")}, folder / "out")
    assert "a.pdf" in found.failed
