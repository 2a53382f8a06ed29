"""Files and pages that are refused, and the messages that say why."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pymupdf
import pytest
from PIL import Image

from mmrh_retriever.errors import PageError
from mmrh_retriever.pdf import pdf_file
from mmrh_retriever.pdf.reader import read_pdf
from tests.pdf.made_pdfs import edited, failure, make_pdf

pytestmark = pytest.mark.usefixtures("backend")


def test_encrypted_files(three: Path, tmp_path: Path) -> None:
    path = tmp_path / "locked.pdf"
    with pymupdf.open(three) as document:
        document.save(path, encryption=pymupdf.PDF_ENCRYPT_AES_256, user_pw="right", owner_pw="owner")
    missing = failure(lambda: read_pdf(path))
    assert "locked.pdf" in str(missing)
    assert "password=" in str(missing)
    assert missing.source == str(path)
    wrong = failure(lambda: read_pdf(path, password="wrong"))
    assert "does not open" in str(wrong)
    assert "'wrong'" not in str(wrong)
    assert len(read_pdf(path, password="right")) == 3


def test_truncated_files(tmp_path: Path) -> None:
    whole = make_pdf([f"Page {i} " * 200 for i in range(5)])
    path = tmp_path / "cut.pdf"
    path.write_bytes(whole[: len(whole) * 6 // 10])
    error = failure(lambda: read_pdf(path))
    assert "cut.pdf" in str(error)
    assert "cut short" in str(error)
    assert "strict=False" in str(error)
    path.write_bytes(whole[:100])
    assert "cut.pdf" in str(failure(lambda: read_pdf(path, strict=False)))


def test_a_repairable_file_is_read(three: Path) -> None:
    data = re.sub(rb"startxref\s+\d+", b"startxref 3", three.read_bytes())
    pages = read_pdf(data)
    assert [page.text for page in pages] == ["First page", "Second page", "Third page"]


def test_empty_files(tmp_path: Path) -> None:
    path = tmp_path / "empty.pdf"
    path.touch()
    assert "empty.pdf is empty (0 bytes)" in str(failure(lambda: read_pdf(path)))
    assert "0 bytes" in str(failure(lambda: read_pdf(b"")))


def test_files_without_pages(three: Path) -> None:
    data = edited(three.read_bytes(), lambda d: None)
    data = data.replace(b"/Count 3", b"/Count 0")
    data = re.sub(rb"/Kids\s*\[[^\]]*\]", lambda m: b"/Kids[" + b" " * (len(m.group()) - 7) + b"]", data)
    assert "no pages" in str(failure(lambda: read_pdf(data)))


def test_page_trees_that_promise_too_much(three: Path) -> None:
    data = edited(three.read_bytes(), lambda d: None).replace(b"/Count 3", b"/Count 9")
    error = failure(lambda: read_pdf(data))
    assert error.page == 3
    assert [page.text for page in read_pdf(data, pages="1-3")] == ["First page", "Second page", "Third page"]


def test_page_trees_that_promise_millions(three: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    data = edited(three.read_bytes(), lambda d: None).replace(b"/Count 3", b"/Count 2147483647")
    if backend == "pdfium":  # which counts them itself
        assert len(read_pdf(data)) == 3
    else:
        for pages in (None, "1-", [0]):
            assert "pages" in str(failure(lambda pages=pages: read_pdf(data, pages=pages)))
    monkeypatch.setattr(pdf_file, "MAX_PAGES", 2)  # older MuPDFs believe any number
    assert "claims 3 pages. Expected at most 2" in str(failure(lambda: read_pdf(three)))


def test_images_named_pdf(tmp_path: Path) -> None:
    path = tmp_path / "scan.pdf"
    Image.new("RGB", (50, 50)).save(path, "PNG")
    error = failure(lambda: read_pdf(path))
    assert "scan.pdf is a PNG image" in str(error)
    assert "Page(image=" in str(error)


def test_other_bytes_named_pdf(tmp_path: Path) -> None:
    path = tmp_path / "notes.pdf"
    path.write_text("hello world " * 100)
    error = failure(lambda: read_pdf(path))
    assert "notes.pdf is not a PDF" in str(error)
    assert "hello" in str(error)


def test_missing_files_and_directories(tmp_path: Path) -> None:
    missing = failure(lambda: read_pdf(tmp_path / "gone.pdf"))
    assert "gone.pdf: no such file" in str(missing)
    directory = failure(lambda: read_pdf(tmp_path))
    assert "is a directory" in str(directory)
    assert "*.pdf" in str(directory)


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="list"):
        read_pdf([])  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (5, 14_000)])
def test_pages_with_no_room_to_read(size: tuple[float, float], tmp_path: Path) -> None:
    path = tmp_path / "dot.pdf"
    path.write_bytes(edited(make_pdf(["fine"]), lambda d: d.new_page(width=size[0], height=size[1])))
    error = failure(lambda: read_pdf(path))
    assert "Page 2 of dot.pdf" in str(error)
    assert f"{size[0]} x {size[1]} pt" in str(error)
    assert "pages=" in str(error)
    assert error.page == 1
    assert len(read_pdf(path, pages="1")) == 1


@pytest.mark.parametrize("size", [(14_401, 600), (100_000, 100_000), (600, 1_000_000)])
def test_pages_larger_than_pdf_allows(size: tuple[float, float]) -> None:
    error = failure(lambda: read_pdf(make_pdf(["Much too large"], size), doc_id="plan.pdf"))
    assert "Page 1 of plan.pdf" in str(error)
    assert "14,400 units" in str(error) or "too long a strip" in str(error)


def test_user_units_make_larger_pages(backend: str) -> None:
    def enlarge(document: pymupdf.Document) -> None:
        document.xref_set_key(document[0].xref, "UserUnit", "10")

    unit = 10 if backend == "pymupdf" else 1
    page = read_pdf(edited(make_pdf(["A map"], (14_400, 10_000)), enlarge))[0]
    assert page.size == (14_400 * unit, 10_000 * unit)
    assert page.text == "A map"
    with pytest.raises(PageError, match="14,400 units"):
        read_pdf(edited(make_pdf(["A map"], (14_500, 10_000)), enlarge))


def damage(document: pymupdf.Document) -> None:
    xref = document[1].get_contents()[0]
    content = document.xref_stream(xref)
    document.update_stream(xref, content[:60] + b" ]] >> ((( foo bar BT 1 2 3 baz " + content[60:])


def test_damaged_content(three: Path, capfd: pytest.CaptureFixture[str], backend: str) -> None:
    data = edited(three.read_bytes(), damage)
    if backend == "pdfium":  # which says nothing of it
        assert [page.index for page in read_pdf(data)] == [0, 1, 2]
        return
    error = failure(lambda: read_pdf(data, doc_id="broken"))
    assert "Page 2 of broken" in str(error)
    assert "syntax error" in str(error)
    assert "strict=False" in str(error)
    assert error.page == 1
    pages = read_pdf(data, strict=False)
    assert [page.index for page in pages] == [0, 1, 2]
    assert any("syntax error" in warning for warning in pages[1].metadata["warnings"])
    assert "warnings" not in pages[0].metadata
    assert pages[1].pixels().width > 0
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_text_of_senseless_size_is_read(three: Path, backend: str) -> None:
    def enlarge(document: pymupdf.Document) -> None:
        content, font = document[0].get_contents()[0], document[0].get_fonts()[0][4]
        huge = "9" * 26
        document.update_stream(content, f"BT /{font} {huge} Tf -1 1 300 {huge} 0 300 Tm (hi there) Tj ET".encode())

    pages = read_pdf(edited(three.read_bytes(), enlarge), layout=backend == "pymupdf", strict=False)
    assert [page.text for page in pages[1:]] == ["Second page", "Third page"]


def test_a_missing_content_stream(three: Path, backend: str) -> None:
    data = edited(three.read_bytes(), lambda d: d.xref_set_key(d[2].xref, "Contents", "999 0 R"))
    if backend == "pdfium":  # for which the page is empty
        assert [page.text for page in read_pdf(data)] == ["First page", "Second page", None]
    else:
        assert failure(lambda: read_pdf(data)).page == 2


def test_damage_seen_only_when_drawing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    path = tmp_path / "picture.pdf"
    with pymupdf.open() as document:
        page = document.new_page()
        picture = tmp_path / "picture.png"
        Image.fromarray(noise).save(picture)
        xref = page.insert_image((50, 50, 300, 300), filename=picture)
        document.xref_set_key(xref, "Filter", "/FlateDecode")
        document.xref_set_key(xref, "DecodeParms", "null")
        document.update_stream(xref, b"not a picture at all", compress=False)
        document.xref_set_key(xref, "Filter", "/FlateDecode")
        document.save(path)
    page_ = read_pdf(path)[0]
    error = failure(page_.pixels)
    assert "Page 1 of picture.pdf" in str(error)
    assert error.page == 0
    assert read_pdf(path, strict=False)[0].pixels().width > 0
    assert "Page 1 of picture.pdf" in caplog.text


def test_harmless_messages_stay_off_the_log_and_the_terminal(
    three: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    page = read_pdf(three, backend="pymupdf")[0]
    monkeypatch.setattr(pymupdf.TOOLS, "mupdf_warnings", lambda: "openjpeg warning: odd\n... repeated 3 times...")
    assert page.pixels().width > 0
    assert caplog.text == ""
    assert read_pdf(three, backend="pymupdf")[0].metadata["warnings"] == ["openjpeg warning: odd"]


def test_messages_of_other_mupdf_users_stay_theirs(three: Path) -> None:
    shown = pymupdf.TOOLS.mupdf_display_errors()
    read_pdf(three)[0].pixels()
    assert pymupdf.TOOLS.mupdf_display_errors() == shown
