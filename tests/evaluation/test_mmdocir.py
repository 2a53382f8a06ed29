"""Reading MMDocIR: small generated PDFs and parquet files in the official form."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pymupdf
import pytest
from PIL import Image

from mmrh_retriever.errors import DataError, PageError
from mmrh_retriever.evaluation.mmdocir import MMDocIR, ParquetPages, read_annotations


def question(text: str, pages: list[int], **more: Any) -> dict[str, Any]:
    layout = [{"page": page, "page_size": [200.0, 300.0], "bbox": [10, 20.5, 100, 60]} for page in pages]
    return {"Q": text, "A": "x", "page_id": pages, "type": "['Table']", "layout_mapping": layout, **more}


def document(name: str, rows: list[int] | None, layouts: list[int] | None, **more: Any) -> dict[str, Any]:
    given = {"doc_name": name, "domain": "News", "questions": [question("Where?", [1])], **more}
    if rows is not None:
        given |= {"page_indices": rows, "layout_indices": layouts}
    return given


LINES = [document("a.pdf", [0, 2], [0, 3]), document("b.pdf", [3, 4], [4, 4], domain="Law")]


def write_lines(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_pdf(path: Path, texts: list[str]) -> None:
    made = pymupdf.open()
    for text in texts:
        made.new_page(width=200, height=300).insert_text((20, 50), text)
    made.save(path)


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "annotations.jsonl", LINES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pdf(tmp_path / "a.pdf", ["one", "two", "three"])
    write_pdf(tmp_path / "b.pdf", ["four", "five"])
    return tmp_path


def jpeg(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 60), (shade, 0, 0)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def parquets(tmp_path: Path) -> tuple[Path, Path]:
    arrow = pytest.importorskip("pyarrow", reason="pip install pyarrow to read parquet files")
    parquet = pytest.importorskip("pyarrow.parquet")
    pages = [
        {
            "doc_name": name.removesuffix(".pdf"), "domain": "News", "passage_id": str(index), "image_path": "",
            "image_binary": jpeg(row), "ocr_text": f"ocr {row}", "vlm_text": None if row == 4 else f"vlm {row}",
        }
        for row, (name, index) in enumerate([("a.pdf", 0), ("a.pdf", 1), ("a.pdf", 2), ("b.pdf", 0), ("b.pdf", 1)])
    ]  # fmt: skip
    layouts = [
        {
            "doc_name": name.removesuffix(".pdf"), "domain": "News", "type": kind, "layout_id": 9 - row,
            "page_id": page, "image_path": "", "image_binary": b"",
            "text": "words" if kind == "text" else None, "ocr_text": "seen", "vlm_text": "",
            "bbox": box, "page_size": [200.0, 300.0],
        }
        for row, (name, page, kind, box) in enumerate([
            ("a.pdf", 0, "text", [0, 0, 50, 50]), ("a.pdf", 2, "table", [1, 2, 3, 4.5]),
            ("a.pdf", 2, "image", [5, 5, 9, 9]), ("a.pdf", 1, "text", [5, 5, 5, 9]),
            ("b.pdf", 1, "equation", [0, 0, 9, 9]),
        ])
    ]  # fmt: skip
    paths = tmp_path / "pages.parquet", tmp_path / "layouts.parquet"
    for path, rows in zip(paths, (pages, layouts), strict=True):
        parquet.write_table(arrow.Table.from_pylist(rows), path, row_group_size=2)  # documents cross row groups
    return paths


def test_annotations_are_read_as_the_official_file_writes_them(tmp_path: Path) -> None:
    several = question(" Which? ", [2, 0, 2], type="['Pure-text (Plain-text)', 'Chart']")
    plain = {"Q": "No layout?", "page_id": [0], "type": "[]"}
    others = [question("Why?", [0], type=kind) for kind in ("una-web", "multimodal-t", '["Table"]', ["Table", "Table"])]
    line = document("a.pdf", [7, 9], [1, 1], questions=[several, plain, *others])
    (found,) = read_annotations(write_lines(tmp_path / "x.jsonl", [line]))
    assert (found.name, found.domain, found.line) == ("a.pdf", "News", 1)
    assert found.page_rows == range(7, 10)  # the file's last row is included
    first, second, *more = found.questions
    assert [item.types for item in more] == [("una-web",), ("multimodal-t",), ("Table",), ("Table",)]
    assert first.text == " Which? "
    assert first.pages == (2, 0)
    assert first.types == ("Pure-text (Plain-text)", "Chart")
    assert first.layouts[0].box == (10, 20.5, 100, 60)
    assert first.layouts[0].page_size == (200.0, 300.0)
    assert (second.number, second.types, second.layouts) == (1, (), ())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Invalid JSON"),
        ({"doc_name": "a", "domain": "b"}, "questions: Field required"),
        (document("a", [0, 1], [0, 1], questions=[question("", [0])]), "questions.0.Q"),
        (document("a", [0, 1], [0, 1], questions=[question("q", [])]), "questions.0.page_id"),
        (document("a", [0, 1], [0, 1], questions=[question("q", [-1])]), "questions.0.page_id.0"),
        (document("a", [0, 1], [0, 1], questions=[question("q", [0], type="[Table]")]), "questions.0.type"),
        (document("a", [0, 1], [0, 1], questions=[question("q", [0], type="text only")]), "questions.0.type"),
        (document("a", [0, 1], [0, 1], questions=[question("q", [0], type="['a'] + ['b']")]), "questions.0.type"),
        (document("a", [0, 1], [0, 1], questions=[question("q", [0], type="[1]")]), "a type is a word"),
        (document("a", [4, 1], [0, 1]), "run backwards"),
        (document("a.pdf", None, None), "line 1 already"),
        (
            document("a", None, None, questions=[question("q", [0], layout_mapping=[
                {"page": 0, "page_size": [1, 1], "bbox": [5, 0, 1, 1]}
            ])]),
            "x0 <= x1",
        ),
    ],
)  # fmt: skip
def test_malformed_lines_are_named(tmp_path: Path, line: Any, message: str) -> None:
    path = tmp_path / "x.jsonl"
    second = line if isinstance(line, str) else json.dumps(line)
    path.write_text(json.dumps(document("a.pdf", [0, 1], [0, 1])) + "\n\n" + second + "\n")
    with pytest.raises(DataError, match="line 3") as error:
        read_annotations(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_missing_and_empty_annotations(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_annotations(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="no documents"):
        read_annotations(write_lines(tmp_path / "empty.jsonl", []))


def test_pages_from_pdfs(annotations: Path, folder: Path) -> None:
    data = MMDocIR.from_pdfs(annotations, folder)
    pages = data.pages(data.documents[1])
    assert [page.index for page in pages] == [0, 1]
    assert [page.text for page in pages] == ["four", "five"]
    assert pages[0].doc_id == "b.pdf"
    assert pages[0].size == (200, 300)
    assert not pages[0].regions
    assert data.pages(data.documents[1], regions=True)[0].regions


def test_missing_pdfs_are_all_listed(annotations: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 of 2 PDFs are missing: a\.pdf, b\.pdf"):
        MMDocIR.from_pdfs(annotations, tmp_path)
    data = MMDocIR.from_pdfs(annotations, tmp_path, allow_missing=True)
    with pytest.raises(DataError, match="no such PDF"):
        data.pages(data.documents[0])
    with pytest.raises(DataError, match="no such folder"):
        MMDocIR.from_pdfs(annotations, tmp_path / "none")


def test_another_edition_of_a_pdf_is_refused(annotations: Path, folder: Path) -> None:
    write_pdf(folder / "a.pdf", ["only", "two"])
    data = MMDocIR.from_pdfs(annotations, folder)
    with pytest.raises(DataError, match=r"a\.pdf has 2 pages.*speak of 3"):
        data.pages(data.documents[0])


def test_evidence_beyond_the_last_page_is_refused(tmp_path: Path) -> None:
    write_pdf(tmp_path / "a.pdf", ["one"])
    data = MMDocIR.from_pdfs(write_lines(tmp_path / "x.jsonl", [document("a.pdf", None, None)]), tmp_path)
    with pytest.raises(DataError, match=r"question 0 of line 1.*\[1\]"):
        data.pages(data.documents[0])


def test_limits_and_fingerprints(annotations: Path, folder: Path) -> None:
    data = MMDocIR.from_pdfs(annotations, folder)
    assert [item.name for item in data.first(1).documents] == ["a.pdf"]
    assert data.first(9).fingerprint == data.fingerprint == MMDocIR.from_pdfs(annotations, folder).fingerprint
    assert data.first(1).fingerprint != data.fingerprint
    changed = [LINES[0], document("b.pdf", [3, 4], [4, 4], domain="Law", questions=[question("Where?", [0])])]
    other = MMDocIR.from_pdfs(write_lines(annotations, changed), folder)
    assert other.fingerprint != data.fingerprint
    with pytest.raises(DataError, match="At least one"):
        data.first(0)


def test_pages_from_parquet(annotations: Path, parquets: tuple[Path, Path]) -> None:
    data = MMDocIR.from_parquet(annotations, *parquets)
    pages = data.pages(data.documents[0], regions=True)
    assert [page.text for page in pages] == ["ocr 0", "ocr 1", "ocr 2"]
    assert [page.index for page in pages] == [0, 1, 2]
    assert [len(page.regions) for page in pages] == [1, 0, 2]  # the box without area is left out
    assert [(r.kind, r.text, r.box) for r in pages[2].regions] == [
        ("image", "seen", (5, 5, 9, 9)), ("table", "seen", (1, 2, 3, 4.5))
    ]  # fmt: skip  # in the order of layout_id
    assert pages[0].regions[0].text == "words"
    assert all(page.size == (200, 300) for page in pages)
    assert pages[1].pixels().size == (40, 60)
    second = data.pages(data.documents[1])
    assert [page.text for page in second] == ["ocr 3", "ocr 4"]
    assert [page.size for page in second] == [(40, 60), (200, 300)]  # pixels where no box gives points
    assert not second[1].regions
    vlm = MMDocIR.from_parquet(annotations, *parquets, text="vlm_text")
    assert [page.text for page in vlm.pages(vlm.documents[1])] == ["vlm 3", None]


def test_layout_boxes_need_their_file(annotations: Path, parquets: tuple[Path, Path]) -> None:
    data = MMDocIR.from_parquet(annotations, parquets[0])
    with pytest.raises(DataError, match="layouts parquet"):
        data.pages(data.documents[0], regions=True)


def test_parquet_files_that_do_not_fit_the_annotations(tmp_path: Path, parquets: tuple[Path, Path]) -> None:
    def read(*lines: dict[str, Any]) -> MMDocIR:
        return MMDocIR.from_parquet(write_lines(tmp_path / "x.jsonl", list(lines)), *parquets)

    with pytest.raises(DataError, match=r"line 1: a\.pdf has rows up to 5; .* has 5"):
        read(document("a.pdf", [0, 5], [0, 1]))
    with pytest.raises(DataError, match="has no rows"):
        read(document("a.pdf", None, None))
    with pytest.raises(DataError, match=r"pages\.parquet: rows 1 to 3 should be a\.pdf, found b"):
        read(document("a.pdf", [1, 3], [0, 1]))
    with pytest.raises(DataError, match=r"layouts\.parquet: rows 1 to 4 should be a\.pdf, found b"):
        read(document("a.pdf", [0, 2], [1, 4]))
    with pytest.raises(DataError, match=r"columns \['ocr_text'\] are missing"):
        MMDocIR.from_parquet(tmp_path / "x.jsonl", _without(parquets[0], ["ocr_text"]))
    with pytest.raises(DataError, match=r"columns \['ocr_text', 'image_binary or image_path'\] are missing"):
        MMDocIR.from_parquet(tmp_path / "x.jsonl", _without(parquets[0], ["image_binary", "image_path", "ocr_text"]))
    (tmp_path / "not.parquet").write_text("no")
    with pytest.raises(DataError, match="not a parquet file"):
        MMDocIR.from_parquet(tmp_path / "x.jsonl", tmp_path / "not.parquet")
    with pytest.raises(DataError, match="no such file"):
        MMDocIR.from_parquet(tmp_path / "x.jsonl", tmp_path / "none.parquet")


def _without(path: Path, columns: list[str]) -> Path:
    import pyarrow.parquet as parquet

    parquet.write_table(parquet.read_table(path).drop_columns(columns), path.with_suffix(".less"))
    return path.with_suffix(".less")


def test_a_page_with_nothing_on_it_is_named(tmp_path: Path, parquets: tuple[Path, Path]) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    table = parquet.read_table(parquets[0]).to_pylist()
    table[1] |= {"image_binary": None, "ocr_text": " "}
    parquet.write_table(arrow.Table.from_pylist(table), parquets[0])
    data = MMDocIR.from_parquet(write_lines(tmp_path / "x.jsonl", LINES), *parquets)
    with pytest.raises(PageError, match=r"page 2 of a\.pdf has neither"):
        data.pages(data.documents[0])


def test_without_pyarrow_the_message_names_the_extra(
    annotations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pip install 'mmrh-retriever\[eval\]'"):
        MMDocIR.from_parquet(annotations, tmp_path / "pages.parquet")


def test_parquet_pages_can_be_sent_to_another_process() -> None:
    import pickle

    source = ParquetPages(Path("p"), Path("l"))
    assert pickle.loads(pickle.dumps(source)) == source  # noqa: S301


DEV = os.environ.get("MMRH_MMDOCIR_DEV")


@pytest.mark.skipif(not DEV, reason="set MMRH_MMDOCIR_DEV to a folder of annotations.jsonl and documents/ of real PDFs")
def test_real_documents_fit_their_annotations() -> None:
    folder = Path(str(DEV))
    data = MMDocIR.from_pdfs(folder / "annotations.jsonl", folder / "documents")
    for item in data.documents:
        assert len(data.pages(item)) == len(item.page_rows or ())


FORMS = Path(__file__).parents[3] / "shared" / "mmdocir_forms" / "annotations.jsonl"


@pytest.mark.skipif(not FORMS.is_file(), reason="../shared/mmdocir_forms, lines of the published file, is not there")
def test_every_form_of_the_published_annotations_is_read() -> None:
    found = [item for document in read_annotations(FORMS) for item in document.questions]
    assert len(found) == 1278
    assert {"text-only", "multimodal-f", "una-web", "Pure-text (Plain-text)", "Chart"} <= {
        kind for item in found for kind in item.types
    }
    assert sum(item.text != item.text.strip() for item in found) == 27
    flat = [item for item in found if all(box.box[0] == box.box[2] for box in item.layouts)]
    assert [item.pages for item in flat] == [(6,)]
