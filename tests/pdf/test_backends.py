"""Two libraries that read PDFs: what both give, which one is taken, and a Python without PyMuPDF."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pymupdf
import pytest

from mmrh_retriever import Library, Page, SettingsError, read_pdf
from mmrh_retriever.adapters.clues import PageClues
from mmrh_retriever.adapters.page_sources import PageSource
from mmrh_retriever.pdf import backends
from mmrh_retriever.pdf.backends import backend_of, choose_backend, finds_layout
from mmrh_retriever.pdf.pdf_file import PdfFile
from mmrh_retriever.pdf.pdfium_labels import labels_are_safe
from mmrh_retriever.pdf.reader import PdfPageImage
from tests.pdf.made_pdfs import edited, failure, make_pdf

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "examples" / "sample_report.pdf"
NAMES = ("pymupdf", "pdfium")


def both(source: Path | bytes, **options: object) -> list[list[Page]]:
    return [read_pdf(source, backend=name, **options) for name in NAMES]  # type: ignore[arg-type]


def words(page: Page) -> Counter[str]:
    return Counter((page.text or "").split())


# What both give


def test_the_sample_report_reads_the_same() -> None:
    for one, other in zip(*both(REPORT), strict=True):
        assert (one.size, one.label, dict(one.metadata)) == (other.size, other.label, dict(other.metadata))
        shared = (words(one) & words(other)).total()
        assert 2 * shared >= 0.98 * (words(one).total() + words(other).total())
        assert (one.text or "").split()[:20] == (other.text or "").split()[:20]


def test_the_sample_report_looks_the_same() -> None:
    for one, other in zip(*both(REPORT, max_pixels=300_000), strict=True):
        images = [page.pixels() for page in (one, other)]
        assert images[0].size == images[1].size
        grey = [np.asarray(image.convert("L").reduce(8), dtype=float) for image in images]
        assert np.abs(grey[0] - grey[1]).mean() < 6
        assert np.corrcoef(grey[0].ravel(), grey[1].ravel())[0, 1] > 0.9


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("cropped", [False, True])
def test_turned_and_cropped_pages_read_the_same(rotation: int, cropped: bool) -> None:
    with pymupdf.open() as document:
        page = document.new_page(width=600, height=400)
        page.insert_textbox((60, 60, 280, 340), "Left column of running text. " * 12, fontsize=11)
        page.insert_textbox((320, 60, 540, 340), "Right column of running text. " * 12, fontsize=11)
        page.insert_text((30, 390), "Cut away", fontsize=8)
        page.insert_text((588, 300), "Written upwards", fontsize=8, rotate=90)
        if cropped:
            page.set_cropbox(pymupdf.Rect(40, 40, 600, 380))
        page.set_rotation(rotation)
        data = document.tobytes()
    (one,), (other,) = both(data)
    assert one.size == other.size
    assert one.metadata["rotation"] == other.metadata["rotation"] == rotation
    assert words(one) == words(other)
    assert ("Cut away" in (other.text or "")) is not cropped
    if rotation == 0:
        assert (one.text or "").split() == (other.text or "").split()


def test_annotations_and_form_fields_are_read_and_drawn_by_both() -> None:
    with pymupdf.open() as document:
        page = document.new_page(width=300, height=200)
        frame = page.add_rect_annot((10, 10, 100, 60))
        frame.set_colors(fill=(0, 0, 0))
        frame.update()
        field = pymupdf.Widget()
        field.rect, field.field_type, field.field_name = pymupdf.Rect(150, 100, 290, 140), 7, "name"
        field.field_value, field.text_fontsize = "Filled in", 24
        page.add_widget(field)
        data = document.tobytes()
    for (page_,) in both(data, dpi=72):
        assert page_.text == "Filled in"
        grey = np.asarray(page_.pixels().convert("L"))
        assert grey[20:50, 20:90].mean() < 60
        assert (grey[100:140, 150:290] < 100).sum() > 100


def test_characters_without_a_letter_are_no_text() -> None:
    def forget(document: pymupdf.Document) -> None:
        font = document[0].get_fonts()[0][0]
        names = " ".join(f"/g{code}" for code in range(32, 127))
        document.xref_set_key(font, "Encoding", f"<</Type/Encoding/Differences[32 {names}]>>")

    (page,) = read_pdf(edited(make_pdf(["Nobody knows these letters"]), forget), backend="pdfium")
    assert page.text is None


# Which one is taken


def test_a_backend_is_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_backend("auto") == "pymupdf"
    assert (finds_layout("auto"), finds_layout("pdfium")) == (True, False)
    for name in NAMES:
        image = read_pdf(REPORT, pages="1", backend=name)[0].image  # type: ignore[arg-type]
        assert isinstance(image, PdfPageImage)
        assert image.file.backend == name
    with pytest.raises(SettingsError, match="'poppler'.*'auto', 'pymupdf', 'pdfium'"):
        read_pdf(REPORT, backend="poppler")  # type: ignore[arg-type]
    missing: dict[str, str] = {}

    def find(name: str) -> object:
        if name in missing:
            raise ModuleNotFoundError(name=missing[name])
        return importlib.import_module(name)

    monkeypatch.setattr(backends, "import_module", find)
    backends._preferred.cache_clear()
    missing["mmrh_retriever.pdf.mupdf"] = "pymupdf"
    assert choose_backend("auto") == "pdfium"
    with pytest.raises(ImportError, match=r'pip install pymupdf\), or read with backend="pdfium"'):
        choose_backend("pymupdf")
    missing["mmrh_retriever.pdf.mupdf"] = "something else"  # no reason to take the other library
    with pytest.raises(ModuleNotFoundError):
        backend_of("pymupdf")
    backends._preferred.cache_clear()


def test_layout_needs_pymupdf() -> None:
    for ask in (
        lambda: read_pdf(REPORT, layout=True, backend="pdfium"),
        lambda: Library(REPORT, layout=True, pdf_backend="pdfium"),
        lambda: PageSource(pdf_backend="pdfium").page(PageClues(file_path=REPORT, index=0), layout=True),
    ):
        with pytest.raises(SettingsError, match="layout=True needs PyMuPDF.*AGPL-3.0"):
            ask()


def test_libraries_and_sources_hand_it_on(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    drawn = {}
    for name in NAMES:
        library = Library(REPORT, folder=kept, first_stage="bm25", pdf_backend=name)
        image = library.pages[0].image
        assert isinstance(image, PdfPageImage)
        assert image.file.backend == name
        drawn[name] = image.pixels_key
        page = PageSource(pdf_backend=name).page(PageClues(file_path=REPORT, label="3"))  # type: ignore[arg-type]
        assert isinstance(page.image, PdfPageImage)
        assert (page.number, page.image.file.backend) == (3, name)
    assert drawn["pymupdf"] != drawn["pdfium"]  # pixels of one are never taken for the other's


# Without PyMuPDF

HIDDEN = """
import json, sys
from mmrh_retriever import Library, SettingsError, read_pdf
from mmrh_retriever.pdf import close_documents
from mmrh_retriever.pdf.drawn_text import drawn_text
report = sys.argv[1]
pages = read_pdf(report, pages="1-3")
said = []
for options in ({"layout": True}, {"backend": "pymupdf"}):
    try:
        read_pdf(report, **options)
    except (SettingsError, ImportError) as error:
        said.append(str(error))
(apart,) = read_pdf(report, pages="2", isolate=True)
close_documents()
print(json.dumps({
    "read_by": pages[0].image.file.backend, "text": pages[2].text[:11], "drawn": pages[0].pixels().size, "said": said,
    "isolated": apart.text == pages[1].text and apart.pixels().tobytes() == pages[1].pixels().tobytes(),
    "library": len(Library(report, first_stage="bm25").pages), "text drawn": drawn_text("Some words") is not None,
}))
"""


@pytest.fixture
def without_pymupdf(tmp_path: Path) -> dict[str, str]:
    """An environment in which PyMuPDF can't be imported, by worker processes neither."""
    (tmp_path / "hidden").mkdir()
    raised = 'raise ModuleNotFoundError("No module named \'pymupdf\'", name="pymupdf")\n'
    (tmp_path / "hidden" / "pymupdf.py").write_text(raised)
    return {**os.environ, "PYTHONPATH": f"{tmp_path / 'hidden'}{os.pathsep}{ROOT}"}


def test_everything_but_layout_works_without_pymupdf(without_pymupdf: dict[str, str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", HIDDEN, str(REPORT)], env=without_pymupdf, capture_output=True, check=False, text=True
    )
    assert ran.stderr == ""
    found = json.loads(ran.stdout)
    assert found["read_by"] == "pdfium"
    assert found["text"] == "Key figures"
    assert "layout=True needs PyMuPDF" in found["said"][0]
    assert "pip install pymupdf" in found["said"][1]
    assert found["isolated"]
    assert found["text drawn"]
    assert found["library"] == 12


def test_the_command_line_works_without_pymupdf(without_pymupdf: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mmrh_retriever", "rank", str(REPORT), "How high was revenue?"]
    options = ["--pages", "2-3", "--json", "--report", str(tmp_path / "report.html")]
    ran = subprocess.run([*command, *options], env=without_pymupdf, capture_output=True, check=True, text=True)
    assert {json.loads(line)["page"] for line in ran.stdout.splitlines()} == {2, 3}
    assert (tmp_path / "report.html").is_file()
    refused = subprocess.run([*command, "--regions"], env=without_pymupdf, capture_output=True, check=False, text=True)
    assert refused.returncode == 2
    assert "needs PyMuPDF, as PDFium finds no regions" in " ".join(refused.stderr.replace("│", " ").split())


# Labels that PDFium is not asked for


@pytest.mark.parametrize(
    ("rule", "safe"),
    [
        (b"/St 12>>", True),
        (b"/St\n12/S/D", True),
        (b"/Style 2147483647 ", True),
        (b"/St 2147483647>>", False),
        (b"/#53t 2147483647>>", False),
        (b"/St -2147483648>>", False),
        (b"/St 9 0 R>>", False),
        (b"/St%\n5>>", False),
        (b"/Type/#4fbjStm", False),
        (b"/St 7>>obj<</Type/ObjStm>>stream /S/A endstream", True),
        (b"/ObjStm stream that does not end", False),
        (b"obj<</Type/ObjStm/Filter/LZWDecode>>stream abc endstream", False),
        (b"obj<</Type/ObjStm/Filter/FlateDecode/DecodeParms 3 0 R>>stream abc endstream", False),
    ],
)
def test_rules_with_odd_numbers_are_seen(rule: bytes, safe: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(b"%PDF-1.7 " + rule)
    for file in (PdfFile("a", data=path.read_bytes()), PdfFile("a", path=path)):
        assert labels_are_safe(file, encrypted=False) is safe


@pytest.mark.parametrize("start", [7, 2_147_483_647])
def test_labels_in_packed_objects_are_seen(start: int) -> None:
    def label(document: pymupdf.Document) -> None:
        rule = document.get_new_xref()
        document.update_object(rule, f"<</S/A/St {start}>>")
        document.xref_set_key(document.pdf_catalog(), "PageLabels", f"<</Nums[0 {rule} 0 R]>>")

    with pymupdf.open(stream=edited(make_pdf(["One", "Two"]), label)) as document:
        packed = document.tobytes(use_objstms=1, deflate=True)
        locked = document.tobytes(use_objstms=1, encryption=pymupdf.PDF_ENCRYPT_AES_256, owner_pw="owner")
    assert b"/St" not in packed
    expected = ["G", "H"] if start == 7 else [None, None]
    assert [page.label for page in read_pdf(packed, backend="pdfium")] == expected
    assert [page.label for page in read_pdf(locked, backend="pdfium")] == [None, None]  # nobody sees what is in there


def test_a_cut_file_that_pdfium_cannot_read_says_so() -> None:
    whole = make_pdf([f"Page {i} " * 200 for i in range(5)])
    error = failure(lambda: read_pdf(whole[: len(whole) * 6 // 10], backend="pdfium", strict=False))
    assert 'backend="pymupdf"' in str(error)
