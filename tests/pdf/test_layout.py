"""Layout of pages: each thing once, of the right kind, where it is seen."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pymupdf
import pytest
from PIL import Image, ImageDraw

from mmrh_retriever.pdf.boxes import area, inside, label, overlap
from mmrh_retriever.pdf.layout import image_regions
from mmrh_retriever.pdf.reader import read_pdf
from mmrh_retriever.types import Box, Page, Region

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "examples" / "sample_report.pdf"
MMDOCIR = ROOT.parent / "shared" / "mmdocir_dev"
WORDS = "The harbour master keeps a list of every boat that came in and of every boat that went out again. " * 3


def one_page(draw: Callable[[pymupdf.Page], object], *, rotation: int = 0, crop: Box | None = None) -> Page:
    with pymupdf.open() as document:
        page = document.new_page(width=595, height=842)
        draw(page)
        if crop:
            page.set_cropbox(pymupdf.Rect(crop))
        page.set_rotation(rotation)
        data = document.tobytes()
    return read_pdf(data, layout=True)[0]


def of_kind(page: Page, kind: str) -> list[Region]:
    return [region for region in page.regions if region.kind == kind]


def likeness(one: Box, other: Box) -> float:
    shared = overlap(one, other)
    if shared[2] <= shared[0] or shared[3] <= shared[1]:
        return 0.0
    return area(shared) / (area(one) + area(other) - area(shared))


def grid(page: pymupdf.Page, box: Box = (80, 200, 480, 320), rows: int = 4, columns: int = 4) -> None:
    width, height = (box[2] - box[0]) / columns, (box[3] - box[1]) / rows
    for r in range(rows):
        for c in range(columns):
            x, y = box[0] + c * width, box[1] + r * height
            page.draw_rect((x, y, x + width, y + height))
            page.insert_text((x + 6, y + 18), f"cell {r}.{c}", fontsize=11)


def picture(width: int = 80, height: int = 60) -> bytes:
    noise = np.random.default_rng(1).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return bytes(pymupdf.Pixmap(pymupdf.csRGB, width, height, noise.tobytes(), False).tobytes("png"))


def chart(page: pymupdf.Page) -> None:
    for i, value in enumerate((60, 110, 40, 150, 90)):
        page.draw_rect((110 + 60 * i, 500 - value, 150 + 60 * i, 500), color=None, fill=(0.2, 0.4, 0.7))
        page.insert_text((116 + 60 * i, 514), f"20{20 + i}", fontsize=10)
    page.draw_line((100, 500), (410, 500))


# Pages with a text layer


def test_no_regions_unless_asked_for() -> None:
    assert all(page.regions == () for page in read_pdf(SAMPLE, pages="3"))


def test_titles_paragraphs_and_their_text() -> None:
    def draw(page: pymupdf.Page) -> None:
        page.insert_text((60, 80), "Arrivals and departures", fontsize=20)
        page.insert_textbox((60, 100, 500, 200), WORDS, fontsize=11)
        page.insert_textbox((60, 220, 500, 320), WORDS, fontsize=11)

    page = one_page(draw)
    assert [region.kind for region in page.regions] == ["title", "text", "text"]
    assert page.regions[0].text == "Arrivals and departures"
    assert " ".join((page.regions[1].text or "").split()) == WORDS.strip()
    assert likeness(page.regions[1].box, (60, 100, 500, 150)) > 0.6


def test_paragraphs_of_one_block_are_parted_at_the_gap() -> None:
    def draw(page: pymupdf.Page) -> None:
        for top in (100, 170):
            for line in range(4):
                page.insert_text((60, top + 13 * line), f"{top} {WORDS[:60]}", fontsize=11)

    assert [(region.text or "")[:3] for region in one_page(draw).regions] == ["100", "170"]


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_ruled_tables(rotation: int) -> None:
    page = one_page(grid, rotation=rotation)
    (table,) = of_kind(page, "table")
    with pymupdf.open() as document:
        plain = document.new_page(width=595, height=842)
        plain.set_rotation(rotation)
        expected = (pymupdf.Rect(80, 200, 480, 320) * plain.rotation_matrix).normalize()
    assert likeness(table.box, tuple(expected)) > 0.9
    assert len(page.regions) == 1  # no cell stands beside its table
    assert "cell 0.0" in (table.text or "")
    assert page.size == ((595, 842) if rotation % 180 == 0 else (842, 595))


def test_crop_boxes_move_regions() -> None:
    (table,) = one_page(grid, crop=(50, 150, 550, 500)).regions
    assert likeness(table.box, (30, 50, 430, 170)) > 0.9


def test_what_is_cropped_away_is_not_found() -> None:
    page = one_page(lambda page: (grid(page), page.insert_text((60, 700), WORDS[:60])), crop=(0, 600, 595, 842))
    assert [region.kind for region in page.regions] == ["text"]


def test_a_map_with_a_grid_is_a_figure() -> None:
    def draw(page: pymupdf.Page) -> None:
        grid(page)
        shape = page.new_shape()
        for i in range(500):
            shape.draw_circle((90 + i * 37 % 380, 205 + i * 17 % 110), 2)
            shape.finish(fill=(0.2, 0.6, 0.3))
        shape.commit()

    assert [region.kind for region in one_page(draw).regions] == ["figure"]


def test_tables_without_lines() -> None:
    def draw(page: pymupdf.Page) -> None:
        page.insert_textbox((60, 80, 540, 180), WORDS, fontsize=11)
        for r, name in enumerate(("Quarter", "Spring", "Summer", "Autumn", "Winter")):
            page.insert_text((80, 260 + 18 * r), name, fontsize=11)
            for c in range(3):
                page.insert_text((220 + 90 * c, 260 + 18 * r), f"{17 * r + 5 * c}.{c}", fontsize=11)

    page = one_page(draw)
    assert [region.kind for region in page.regions] == ["text", "table"]
    assert likeness(page.regions[1].box, (80, 250, 425, 335)) > 0.7


def test_two_columns_of_text_are_no_table() -> None:
    def draw(page: pymupdf.Page) -> None:
        page.insert_textbox((60, 80, 280, 300), WORDS, fontsize=11)
        page.insert_textbox((310, 80, 530, 300), WORDS, fontsize=11)

    assert [region.kind for region in one_page(draw).regions] == ["text", "text"]


def test_charts_take_in_their_labels() -> None:
    page = one_page(lambda page: (chart(page), page.insert_textbox((60, 560, 540, 660), WORDS, fontsize=11)))
    assert [region.kind for region in page.regions] == ["figure", "text"]
    figure = page.regions[0]
    assert likeness(figure.box, (100, 350, 410, 516)) > 0.85
    assert "2024" in (figure.text or "")


def test_images_and_texts_beside_them() -> None:
    def draw(page: pymupdf.Page) -> None:
        page.insert_image((100, 100, 300, 250), stream=picture())
        page.insert_textbox((60, 300, 540, 400), WORDS, fontsize=11)

    page = one_page(draw)
    assert [region.kind for region in page.regions] == ["image", "text"]
    assert likeness(page.regions[0].box, (100, 100, 300, 250)) > 0.95


def test_rules_bullets_and_grounds_are_nothing() -> None:
    def draw(page: pymupdf.Page) -> None:
        page.draw_rect(page.rect, color=None, fill=(0.9, 0.95, 1))
        page.draw_line((60, 60), (540, 60))
        page.draw_circle((50, 106), 3, fill=(0, 0, 0))
        page.insert_textbox((60, 100, 540, 200), WORDS, fontsize=11)

    assert [region.kind for region in one_page(draw).regions] == ["text"]


def test_a_frame_around_text_is_text() -> None:
    def draw(page: pymupdf.Page) -> None:
        page.draw_rect((50, 90, 550, 160), fill=(0.9, 1, 0.9))
        page.insert_textbox((60, 100, 540, 160), WORDS, fontsize=11)

    assert [region.kind for region in one_page(draw).regions] == ["text"]


def test_pictures_in_a_background_image_are_found() -> None:
    ground = Image.new("RGB", (600, 840), "white")
    ground.paste(Image.effect_noise((200, 150), 120).convert("RGB"), (300, 500))
    pixmap = pymupdf.Pixmap(pymupdf.csRGB, 600, 840, ground.tobytes(), False)

    def draw(page: pymupdf.Page) -> None:
        page.insert_image(page.rect, pixmap=pixmap)
        page.insert_textbox((60, 100, 540, 200), WORDS, fontsize=11)

    page = one_page(draw)
    assert [region.kind for region in page.regions] == ["text", "image"]
    assert likeness(page.regions[1].box, (298, 501, 496, 652)) > 0.8


# Pages that are only pictures


def scan(draw: Callable[[ImageDraw.ImageDraw], object], size: tuple[int, int] = (595, 842)) -> Image.Image:
    image = Image.new("L", size, 240)
    draw(ImageDraw.Draw(image))
    return image


def lines(pen: ImageDraw.ImageDraw, box: Box, pitch: int = 16) -> None:
    rng = random.Random(3)
    for y in range(int(box[1]), int(box[3]) - 8, pitch):
        x = int(box[0])
        while x < box[2] - 30:
            word = rng.randint(12, 30)
            for letter in range(x, x + word - 4, 5):
                pen.rectangle((letter, y + rng.randint(0, 3), letter + 2, y + 9), fill=20)
            x += word + 3


def test_scanned_paragraphs_and_photographs() -> None:
    def draw(pen: ImageDraw.ImageDraw) -> None:
        lines(pen, (60, 60, 530, 220))
        lines(pen, (60, 280, 530, 400))

    image = scan(draw)
    image.paste(Image.effect_noise((220, 160), 90), (150, 500))
    regions = image_regions(image)
    assert [region.kind for region in regions] == ["text", "text", "image"]
    for region, box in zip(regions, [(60, 60, 530, 220), (60, 280, 530, 400), (150, 500, 370, 660)], strict=True):
        assert likeness(region.box, box) > 0.8


def test_scanned_rules_are_nothing() -> None:
    def draw(pen: ImageDraw.ImageDraw) -> None:
        lines(pen, (60, 60, 530, 220))
        pen.rectangle((60, 300, 530, 303), fill=20)

    assert [region.kind for region in image_regions(scan(draw))] == ["text"]


def test_sizes_may_be_in_other_units() -> None:
    image = scan(lambda pen: lines(pen, (60, 60, 530, 220)))
    (pixels,) = image_regions(image)
    (points,) = image_regions(image, size=(59.5, 84.2))
    assert points.box == pytest.approx([value / 10 for value in pixels.box])


def test_scanned_pages_of_a_pdf_are_seen_through() -> None:
    (page,) = read_pdf(SAMPLE, pages="7", layout=True)
    assert page.text is None
    assert len(page.regions) > 8
    assert sum(region.kind in ("text", "title") for region in page.regions) >= 0.8 * len(page.regions)
    assert page.regions[0].box[1] < 100 < 600 < page.regions[-1].box[3]


def test_blank_pages_have_no_regions() -> None:
    assert image_regions(Image.new("RGB", (300, 400), "white")) == ()
    assert one_page(lambda page: None).regions == ()


def test_connected_areas_are_numbered() -> None:
    rng = np.random.default_rng(0)
    for density in (0.2, 0.45, 0.7):
        mask = rng.random((40, 50)) < density
        labels = label(mask)
        assert ((labels > 0) == mask).all()
        # Neighbours share a number, and each number is one connected area: flood it from one of its cells.
        for name in np.unique(labels[labels > 0]):
            cells = set(zip(*np.nonzero(labels == name), strict=True))
            reached, fresh = set(), [next(iter(cells))]
            while fresh:
                y, x = fresh.pop()
                if (y, x) in reached:
                    continue
                reached.add((y, x))
                around = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
                fresh += [c for c in around if 0 <= c[0] < 40 and 0 <= c[1] < 50 and mask[c]]
            assert reached == cells


# The sample report, and real documents


def test_the_sample_report() -> None:
    pages = {page.number: page for page in read_pdf(SAMPLE, layout=True)}
    for number, kind in {3: "table", 4: "figure", 6: "table", 10: "figure", 12: "figure"}.items():
        assert [region.kind for region in pages[number].regions if region.kind not in ("text", "title")] == [kind]
    assert of_kind(pages[2], "title")[0].text == "A year of storms and of new batteries"
    assert "Storm Petrel" in (of_kind(pages[6], "table")[0].text or "")


def test_every_region_lies_on_its_page_and_none_in_another() -> None:
    for page in read_pdf(SAMPLE, layout=True):
        assert page.size is not None
        for i, region in enumerate(page.regions):
            assert inside(region.box, (0, 0, *page.size)) == pytest.approx(1)
            assert all(inside(region.box, other.box) < 0.9 for j, other in enumerate(page.regions) if j != i)


@pytest.mark.slow
def test_regions_cover_what_annotators_marked() -> None:
    if not MMDOCIR.exists():
        pytest.skip(f"needs the MMDocIR documents in {MMDOCIR}")
    covered = []
    for line in (MMDOCIR / "annotations.jsonl").read_text().splitlines()[1:4]:
        record = json.loads(line)
        marks = [mark for question in record["questions"] for mark in question["layout_mapping"]]
        chosen = sorted({mark["page"] for mark in marks})[:4]
        pages = {
            page.index: page for page in read_pdf(MMDOCIR / "documents" / record["doc_name"], pages=chosen, layout=True)
        }
        for mark in marks:
            if mark["page"] in pages:
                shares = [inside(tuple(mark["bbox"]), region.box) for region in pages[mark["page"]].regions]
                covered.append(min(1.0, sum(shares)))
    assert np.mean(covered) > 0.75
