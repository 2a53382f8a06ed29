"""Pages: what is accepted, what is refused and with which message; grids and spans."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrh_retriever import Page, PageError, PatchGrid, Region, TokenSpan
from mmrh_retriever.types import grid_boxes


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (Image.new("RGB", (1, 1)), "1 x 1 pixels hold nothing"),
        (png(Image.new("RGB", (1, 1))), "1 x 1 pixels hold nothing"),
        (Image.new("1", (20_000, 20_000)), "20000 x 20000 pixels are more than"),
        (Image.new("1", (20_000, 100)), "too long a strip"),
        (b"", "not an image"),
        (b"%PDF-1.7 something", "read_pdf"),
        (png(Image.new("RGB", (50, 50)))[:20], "not an image"),
        ("nowhere/page.png", "no such file"),
        (Path("nowhere/page.png"), "no such file"),
        (3.5, "an object with load"),
    ],
)
def test_images_that_cannot_be_pages_are_refused(image: object, problem: str) -> None:
    with pytest.raises(PageError, match=problem) as caught:
        Page(image=image, index=6, doc_id="report")  # type: ignore[arg-type]
    assert "page 7 of report" in str(caught.value).lower()
    assert (caught.value.source, caught.value.page) == ("report", 6)


def test_a_picture_that_is_cut_short_fails_when_it_is_decoded() -> None:
    rng = np.random.default_rng(0)
    whole = png(Image.fromarray(rng.integers(0, 255, (200, 200, 3), dtype=np.uint8)))
    page = Page(image=whole[: len(whole) // 2], index=2)
    with pytest.raises(PageError, match="page 3 is damaged"):
        page.pixels()


def test_a_large_file_is_measured_before_it_is_decoded() -> None:
    bomb = png(Image.new("1", (30_000, 30_000)))
    assert len(bomb) < 200_000
    with pytest.raises(PageError, match="pixels"):
        Page(image=bomb)


def test_a_page_needs_something_to_read() -> None:
    with pytest.raises(PageError, match="page 1 has neither an image nor text"):
        Page()
    with pytest.raises(PageError, match="neither"):
        Page(text="  \n")
    with pytest.raises(PageError, match="counts from 0"):
        Page(text="x", index=-1)
    for index in (2**31, 10**5000, -(10**5000)):
        with pytest.raises(PageError, match="counts from 0"):
            Page(text="x", index=index)
    with pytest.raises(PageError, match="has no image"):
        Page(text="x").pixels()


def test_pixels_are_rgb_on_white_whatever_the_mode(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (20, 10), (255, 0, 0, 0))
    assert Page(image=clear).pixels().getpixel((3, 3)) == (255, 255, 255)
    palette = Image.new("P", (20, 10), 0)
    palette.putpalette([10, 20, 30] * 256)
    palette.info["transparency"] = 0
    assert Page(image=palette).pixels().getpixel((3, 3)) == (255, 255, 255)
    deep = Image.fromarray(np.full((10, 20), 32_768, dtype=np.uint16))
    assert Page(image=deep).pixels().getpixel((3, 3)) == (127, 127, 127)
    for mode in ("1", "L", "CMYK", "LA"):
        assert Page(image=Image.new(mode, (20, 10))).pixels().mode == "RGB"
    path = tmp_path / "page.png"
    Image.new("RGB", (20, 10), "blue").save(path)
    page = Page(image=path)
    assert page.size == (20.0, 10.0)
    assert page.pixels().getpixel((0, 0)) == (0, 0, 255)


def test_an_image_source_is_asked_only_when_pixels_are_needed() -> None:
    class Source:
        asked = 0

        def load(self) -> Image.Image:
            self.asked += 1
            return Image.new("L", (8, 8))

    source = Source()
    page = Page(image=source)
    assert source.asked == 0
    assert page.pixels().mode == "RGB"
    assert source.asked == 1


def test_numbers_count_from_one_and_indices_from_zero() -> None:
    page = Page(text="x", index=0, doc_id="a.pdf")
    assert (page.index, page.number, page.name) == (0, 1, "page 1 of a.pdf")


def test_regions_are_checked() -> None:
    assert Region((1, 2, 3, 4)).box == (1.0, 2.0, 3.0, 4.0)
    for box in ((3, 2, 1, 4), (1, 2, 1, 4), (0, 0, float("nan"), 1)):
        with pytest.raises(PageError, match="x0 < x1"):
            Region(box)  # type: ignore[arg-type]


def test_spans_are_half_open() -> None:
    assert len(TokenSpan(3, 7)) == 4
    assert TokenSpan(3, 7).shifted(10) == TokenSpan(13, 17)
    with pytest.raises(ValueError, match="start <= stop"):
        TokenSpan(4, 3)


def test_grids_run_row_by_row() -> None:
    grid = PatchGrid.regular(2, 3)
    assert len(grid) == 6
    np.testing.assert_allclose(grid.boxes[1], (1 / 3, 0, 2 / 3, 1 / 2))
    np.testing.assert_allclose(grid.boxes[3], (0, 1 / 2, 1 / 3, 1))
    np.testing.assert_allclose(grid_boxes((0.5, 0.0, 1.0, 1.0), 1, 1)[0], (0.5, 0, 1, 1))


def test_photographs_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    stream = io.BytesIO()
    Image.new("RGB", (120, 60)).save(stream, "JPEG", exif=exif)
    page = Page(image=stream.getvalue())
    assert page.size == (60.0, 120.0)
    assert page.pixels().size == (60, 120)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_a_turned_tiff_is_turned_from_a_path_as_from_bytes(mode: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    made = Image.new("RGB", (40, 90), "white")
    made.paste("black", (0, 0, 20, 45))  # a quarter, at the top left
    made.convert(mode).save(tmp_path / "turned.tif", exif=exif)
    page = Page(image=tmp_path / "turned.tif")
    assert page.size == page.pixels().size == (90, 40)
    assert page.pixels().tobytes() == Page(image=(tmp_path / "turned.tif").read_bytes()).pixels().tobytes()


def test_what_a_source_draws_is_checked_too() -> None:
    class Source:
        def __init__(self, drawn: object) -> None:
            self.drawn = drawn

        def load(self) -> object:
            return self.drawn

    with pytest.raises(PageError, match="1 x 1"):
        Page(image=Source(Image.new("L", (1, 1)))).pixels()  # type: ignore[arg-type]
    with pytest.raises(PageError, match="NoneType"):
        Page(image=Source(None)).pixels()  # type: ignore[arg-type]
