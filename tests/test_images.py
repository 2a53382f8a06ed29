"""Pictures as other programs write them: turned, damaged, and of formats that are not opened."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features

from mmrh_retriever import Page, PageError
from mmrh_retriever.adapters import page_sources
from mmrh_retriever.images import IMAGE_FORMATS

ORIENTATION = 0x0112
WIDE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 120, 3), dtype=np.uint8))
TURNED_FORMATS = [kind for kind in ("JPEG", "PNG", "TIFF", "WEBP", "AVIF") if kind != "AVIF" or features.check("avif")]


def saved(kind: str, orientation: object = 1, **options: object) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stream = io.BytesIO()
    WIDE.save(stream, kind, exif=exif, **options)
    return stream.getvalue()


def with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    """A PNG with one more chunk behind its pixels."""
    end = png.index(b"IEND") - 4
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return png[:end] + chunk + png[end:]


def plain_png() -> bytes:
    stream = io.BytesIO()
    WIDE.save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("kind", TURNED_FORMATS)
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8, 9, 77])
def test_the_size_is_that_of_the_pixels(kind: str, orientation: int) -> None:
    page = Page(image=saved(kind, orientation))
    assert page.size == page.pixels().size
    assert page.size == ((60, 120) if 5 <= orientation <= 8 else (120, 60))


@pytest.mark.parametrize("kind", TURNED_FORMATS)
def test_the_size_of_an_opened_picture_is_that_of_its_pixels(kind: str) -> None:
    opened = Image.open(io.BytesIO(saved(kind, 6)))
    loaded = Image.open(io.BytesIO(saved(kind, 6)))
    loaded.load()
    for image in (opened, loaded, loaded.copy()):
        page = Page(image=image)
        assert page.size == page.pixels().size == (60, 120)


def test_an_orientation_may_stand_behind_a_png_s_pixels() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    page = Page(image=with_chunk(plain_png(), b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    assert page.size == page.pixels().size == (60, 120)


def test_an_orientation_may_stand_in_xmp() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<rdf tiff:Orientation="6"/>')
    stream = io.BytesIO()
    WIDE.save(stream, "PNG", pnginfo=text)
    page = Page(image=stream.getvalue())
    assert page.size == page.pixels().size == (60, 120)


def test_a_png_without_orientation_is_not_decoded_to_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        pytest.fail("decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", refuse)
    assert Page(image=plain_png()).size == (120, 60)


def test_an_orientation_that_is_text_turns_nothing() -> None:
    turned = saved("JPEG", 6)
    entry = struct.pack(">HHI", ORIENTATION, 3, 1)  # tag, type SHORT, one value
    assert entry in turned
    page = Page(image=turned.replace(entry, struct.pack(">HHI", ORIENTATION, 2, 4)))  # type ASCII
    assert page.size == page.pixels().size == (120, 60)


@pytest.mark.parametrize("kind", [*TURNED_FORMATS, "BMP", "GIF", "JPEG2000", "PPM"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_pictures_are_page_errors(kind: str) -> None:
    whole = saved(kind, 6)
    chance = random.Random(kind)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 3, 20))):
            data[chance.randrange(min(len(data), chance.choice((600, len(data)))))] = chance.randrange(256)
        with contextlib.suppress(PageError):
            page = Page(image=bytes(data[: chance.choice((len(data), chance.randrange(len(data))))]))
            assert page.size == page.pixels().size


@pytest.mark.parametrize("kind", ["EPS", "ICO", "ICNS", "PCX", "TGA", "PDF"])
def test_other_formats_are_not_opened(kind: str, tmp_path: Path) -> None:
    stream = io.BytesIO()
    WIDE.save(stream, kind)
    path = tmp_path / f"page.{kind.lower()}"
    path.write_bytes(stream.getvalue())
    for image in (path, stream.getvalue()):
        with pytest.raises(PageError, match="not an image"):
            Page(image=image)


def test_adapters_and_pages_open_the_same_formats() -> None:
    assert page_sources.IMAGE_FORMATS is IMAGE_FORMATS
