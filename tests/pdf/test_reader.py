"""Pages of PDF files: what is read, which pages, and what is drawn."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pymupdf
import pytest
from PIL import Image

from mmrh_retriever.pdf import reader
from mmrh_retriever.pdf.reader import MAX_RENDERED_PIXELS, PdfPageImage, parse_page_range, read_pdf
from tests.pdf.made_pdfs import A4, edited, failure, make_pdf

pytestmark = pytest.mark.usefixtures("backend")


def dark_box(image: Image.Image) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero(np.asarray(image.convert("L")) < 128)
    return int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max())


# What is read


def test_pages_carry_text_number_and_metadata(three: Path) -> None:
    pages = read_pdf(three)
    assert [page.text for page in pages] == ["First page", "Second page", "Third page"]
    assert [(page.index, page.number) for page in pages] == [(0, 1), (1, 2), (2, 3)]
    assert {page.doc_id for page in pages} == {"three.pdf"}
    assert pages[0].size == A4
    assert pages[0].label is None
    assert pages[0].regions == ()
    assert pages[0].metadata["path"] == str(three)
    assert pages[0].metadata["total_pages"] == 3
    assert json.loads(json.dumps(dict(pages[0].metadata))) == dict(pages[0].metadata)


def test_a_relative_path_outlives_a_change_of_directory(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(three.parent)
    page = read_pdf("three.pdf")[0]
    monkeypatch.chdir(Path("/"))
    assert page.metadata["path"] == str(three)
    assert page.pixels().width > 0


def test_bytes_have_no_path_and_take_a_doc_id(three: Path) -> None:
    page = read_pdf(three.read_bytes())[1]
    assert page.text == "Second page"
    assert page.doc_id is None
    assert "path" not in page.metadata
    assert read_pdf(three.read_bytes(), doc_id="mine")[0].doc_id == "mine"


def test_same_names_differ_by_path(three: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "three.pdf"
    other.parent.mkdir()
    shutil.copy(three, other)
    one, two = read_pdf(three)[0], read_pdf(other)[0]
    assert one.doc_id == two.doc_id
    assert one.metadata["path"] != two.metadata["path"]


def test_a_page_without_text_has_none() -> None:
    assert read_pdf(make_pdf([""]))[0].text is None


def test_printed_labels(three: Path) -> None:
    labelled = edited(
        three.read_bytes(),
        lambda d: d.set_page_labels(
            [{"startpage": 0, "style": "r"}, {"startpage": 1, "style": "D", "firstpagenum": 7}]
        ),
    )
    assert [page.label for page in read_pdf(labelled)] == ["i", "7", "8"]


def test_columns_are_read_one_after_the_other() -> None:
    words = "The committee met on several days and read what had been sent in by the members of each town. " * 4
    with pymupdf.open() as document:
        page = document.new_page()
        page.insert_text((60, 60), "HEADING", fontsize=20)
        for top in (90, 300):  # paragraphs at equal heights: no order by height alone is right
            page.insert_textbox((310, top, 540, top + 190), f"RIGHT{top} " + words, fontsize=11)
            page.insert_textbox((60, top, 290, top + 190), f"LEFT{top} " + words, fontsize=11)
        data = document.tobytes()
    text = read_pdf(data)[0].text or ""
    assert re.findall(r"HEADING|LEFT\d+|RIGHT\d+", text) == ["HEADING", "LEFT90", "LEFT300", "RIGHT90", "RIGHT300"]


def test_table_rows_stay_together() -> None:
    rows = [("Item", "2023", "2024"), ("Revenue", "118.2", "131.7"), ("Costs", "90.1", "95.4")]
    with pymupdf.open() as document:
        page = document.new_page()
        for c in range(3):  # drawn column by column
            for r, row in enumerate(rows):
                page.insert_text((60 + 120 * c, 100 + 20 * r), row[c], fontsize=11)
        data = document.tobytes()
    assert [line.split() for line in (read_pdf(data)[0].text or "").splitlines() if line] == [list(r) for r in rows]


# Which pages


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        (None, [0, 1, 2]),
        ([2, 0], [2, 0]),
        (range(1, 3), [1, 2]),
        ("2-3", [1, 2]),
        ("3, 1", [2, 0]),
        ("2-", [1, 2]),
        ([1, 1], [1]),
    ],
)
def test_pages_are_chosen(three: Path, pages: Iterable[int] | str | None, expected: list[int]) -> None:
    read = read_pdf(three, pages=pages)
    assert [page.index for page in read] == expected
    assert [page.text for page in read] == [["First page", "Second page", "Third page"][i] for i in expected]


def test_a_range_names_each_page_once() -> None:
    assert parse_page_range("1-3,7,2-4", total=9) == [0, 1, 2, 6, 3]


@pytest.mark.parametrize("pages", ["", "a", "3-1", "1,,2", "0", "-2", "1.5", "2-9", "4"])
def test_wrong_ranges_are_refused(three: Path, pages: str) -> None:
    error = failure(lambda: read_pdf(three, pages=pages))
    assert "three.pdf" in str(error)
    assert repr(pages) in str(error)
    assert "1-3,7" in str(error)
    assert error.source == str(three)


def test_numbers_of_many_digits_are_refused(three: Path) -> None:
    for pages in ("9" * 5000, "1-" + "9" * 5000, [10**5000], [-(10**5000)]):
        error = failure(lambda pages=pages: read_pdf(three, pages=pages))
        assert "three.pdf" in str(error)
        assert len(str(error)) < 1000
    assert parse_page_range("0" * 5000 + "2", total=3) == [1]


@pytest.mark.parametrize("pages", [[3], [-1], [], [0, 99]])
def test_wrong_indices_are_refused(three: Path, pages: list[int]) -> None:
    error = failure(lambda: read_pdf(three, pages=pages))
    assert "three.pdf" in str(error)
    assert "0 to 2" in str(error)


def test_indices_must_be_whole_numbers(three: Path) -> None:
    with pytest.raises(TypeError, match="whole numbers"):
        read_pdf(three, pages=["1"])  # type: ignore[list-item]


# What is drawn


def test_images_keep_the_pixel_budget(three: Path) -> None:
    for budget in (2_000, 123_457, 1_500_000):
        image = read_pdf(three, max_pixels=budget)[0].pixels()
        assert image.mode == "RGB"
        assert 0.95 * budget < image.width * image.height <= budget
        assert image.width / image.height == pytest.approx(A4[0] / A4[1], rel=0.03)


def test_dpi_overrides_the_budget(three: Path) -> None:
    image = read_pdf(three, dpi=144, max_pixels=1000)[0].pixels()
    assert image.size == (1190, 1684)


def test_the_stated_size_is_the_drawn_size() -> None:
    for size in ((595.28, 841.89), (612.5, 100.3), (33.3, 700.7), (2383.94, 3370.39)):
        source = read_pdf(make_pdf([""], size))[0].image
        assert isinstance(source, PdfPageImage)
        assert source.load().size == (source.width, source.height)


def test_small_pages_are_not_blown_up() -> None:
    image = read_pdf(make_pdf([""], (72, 36)), max_pixels=10_000_000)[0].pixels()
    assert image.size == (300, 150)


def test_huge_pages_are_capped() -> None:
    data = make_pdf(["x"], (14_400, 14_400))
    assert read_pdf(data)[0].size == (14_400, 14_400)
    default = read_pdf(data)[0].pixels()
    assert default.width * default.height <= reader.DEFAULT_MAX_PIXELS
    for source in (read_pdf(data, dpi=600)[0].image, read_pdf(data, max_pixels=10**12)[0].image):
        assert isinstance(source, PdfPageImage)
        assert source.width * source.height <= MAX_RENDERED_PIXELS


@pytest.mark.parametrize(
    ("rotation", "corner"), [(0, "top left"), (90, "top right"), (180, "bottom right"), (270, "bottom left")]
)
def test_rotation_is_honoured(rotation: int, corner: str) -> None:
    with pymupdf.open() as document:
        page = document.new_page(width=400, height=200)
        page.draw_rect((0, 0, 20, 20), color=None, fill=(0, 0, 0))
        page.set_rotation(rotation)
        data = document.tobytes()
    page_ = read_pdf(data)[0]
    assert page_.size == ((400, 200) if rotation % 180 == 0 else (200, 400))
    image = page_.pixels()
    assert image.width / image.height == pytest.approx(page_.size[0] / page_.size[1], rel=0.01)
    x0, y0, x1, y1 = dark_box(image)
    assert ("left" if (x0 + x1) / 2 < image.width / 2 else "right") in corner
    assert ("top" if (y0 + y1) / 2 < image.height / 2 else "bottom") in corner


def test_crop_boxes_are_honoured() -> None:
    def crop(document: pymupdf.Document) -> None:
        document[0].insert_text((300, 700), "far below")
        document[0].set_cropbox(pymupdf.Rect(50, 50, 250, 150))

    page = read_pdf(edited(make_pdf(["Visible"]), crop))[0]
    assert page.size == (200, 100)
    assert page.text == "Visible"
    image = page.pixels()
    assert image.width / image.height == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("bad", [{"max_pixels": 0}, {"max_pixels": -5}, {"dpi": 0}, {"dpi": float("nan")}])
def test_senseless_budgets_are_refused(three: Path, bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        read_pdf(three, **bad)  # type: ignore[arg-type]
