"""Questions on whole documents: the files of several sets, and damaged ones."""

from __future__ import annotations

import json
from pathlib import Path

import pymupdf
import pytest

from mmrh_retriever import HeadId, HeadSet
from mmrh_retriever.errors import DataError
from mmrh_retriever.research.causal import causal_rows
from mmrh_retriever.research.probes.long_documents import DOCUMENT_PROMPT, read_long_documents
from tests.factories import tiny

ASKED = {"document": "a.pdf", "question": "How many kites?", "answer": "214", "pages": [1]}


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    document = pymupdf.open()
    for text in ("The first page speaks of rain.", "There were 214 kites.", "The last page says goodbye."):
        document.new_page(width=200, height=200).insert_text((20, 40), text)
    document.save(tmp_path / "a.pdf")
    return tmp_path


def write(folder: Path, *records: object) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_questions_become_probes_on_all_pages(documents: Path) -> None:
    path = write(documents, ASKED, {**ASKED, "answer": ["214", "two hundred and fourteen"], "pages": None})
    one, two = read_long_documents(path, documents, lambda _: 900)
    assert (one.answer, one.gold, one.depth, len(one.items), one.labelled) == ("214", {1}, 0.5, 3, True)
    assert one.context_length == 4096
    assert two.accepted == ("two hundred and fourteen",)
    assert not two.evidence
    assert one.name != two.name
    (limited,) = read_long_documents(path, documents, limit=1)
    assert limited.context_length == 2048


@pytest.mark.parametrize(
    "record",
    [
        {"doc_id": "a.pdf", "question": "How many?", "answer": 214},
        {"deck_name": "a", "question": "How many?", "answers": ["214"]},
        {"doc_name": "a.pdf", "domain": "News", "questions": [{"Q": "How many?", "A": "214", "page_id": [1]}]},
    ],
)
def test_the_fields_of_known_sets_are_read(documents: Path, record: dict[str, object]) -> None:
    (probe,) = read_long_documents(write(documents, record), documents)
    assert (probe.question, probe.answer) == (("How many?",), "214")


def test_cut_documents_leave_out_what_lies_behind(documents: Path) -> None:
    path = write(documents, {**ASKED, "pages": [2]}, ASKED)
    (probe,) = read_long_documents(path, documents, max_pages=2)
    assert len(probe.items) == 2
    assert probe.gold == {1}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**ASKED, "document": "b.pdf"}, "missing"),
        ({**ASKED, "pages": [3]}, "has 3 pages"),
        ({**ASKED, "answer": ""}, "no answer"),
        ({"document": "a.pdf", "question": "Q?"}, "answer"),
        ({"question": "Q?", "answer": "a"}, "document"),
    ],
)
def test_bad_records_are_named_by_line(documents: Path, record: dict[str, object], message: str) -> None:
    path = write(documents, ASKED, record)
    with pytest.raises(DataError, match=message) as caught:
        list(read_long_documents(path, documents))
    assert "line 2" in str(caught.value)


def test_truncated_and_empty_files_are_refused(documents: Path) -> None:
    path = write(documents, ASKED)
    path.write_text(path.read_text()[:30])
    with pytest.raises(DataError, match=r"line 1 .*cut off"):
        list(read_long_documents(path, documents))
    path.write_text("\n")
    with pytest.raises(DataError, match="no questions"):
        list(read_long_documents(path, documents))
    with pytest.raises(DataError, match="no such file"):
        list(read_long_documents(documents / "none.jsonl", documents))


@pytest.mark.parametrize("name", ["llama", "qwen3_vl"])
def test_documents_go_through_the_causal_test(documents: Path, name: str) -> None:
    model = tiny(name)
    heads = HeadSet((HeadId(1, 1),), n_layers=3, n_heads=4)
    probes = list(read_long_documents(write(documents, ASKED), documents))
    rows = list(
        causal_rows(
            model.model,
            (model.tokenizer, model.image_processor),
            probes,
            heads,
            random_seeds=1,
            phases=["all"],
            prompt=DOCUMENT_PROMPT,
            max_new_tokens=4,
        )
    )
    assert [row.masked for row in rows] == ["unmasked", "selected", "random", "random, same layers"]
    assert all(0.0 <= row.anls <= 1.0 and row.task == "long_document" for row in rows)
