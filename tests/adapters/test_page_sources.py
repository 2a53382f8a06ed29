"""Pages from what documents say of them: pictures in memory, files, PDF pages, and which files are refused."""

from __future__ import annotations

import base64
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pymupdf
import pytest
from PIL import Image

from mmrh_retriever.errors import PageError, SettingsError
from mmrh_retriever.page_sources import PageClues, PageSource
from tests.factories import page_image
from tests.ranking_stub import png


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header claims a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.fixture
def pdf(tmp_path: Path) -> Path:
    """Four pages, labelled i, ii, 1, 2; each one's text says which it is."""
    document = pymupdf.open()
    for number in range(4):
        document.new_page(width=200, height=300).insert_text((20, 40), f"sheet {number}")
    document.set_page_labels([{"startpage": 0, "style": "r"}, {"startpage": 2, "style": "D"}])
    path = tmp_path / "labelled.pdf"
    document.save(path)
    return path


@pytest.fixture
def plain_pdf(tmp_path: Path) -> Path:
    document = pymupdf.open()
    for number in range(3):
        document.new_page(width=200, height=300).insert_text((20, 40), f"sheet {number}")
    path = tmp_path / "plain.pdf"
    document.save(path)
    return path


# Pictures in memory


def test_picture_routes_in_memory_agree() -> None:
    source, data = PageSource(), png()
    packed = base64.b64encode(data).decode()
    given: list[Any] = [
        page_image(0),
        data,
        packed,
        f"data:image/png;base64,{packed}",
        base64.urlsafe_b64encode(data).decode().rstrip("="),
        "\n".join(packed[i : i + 76] for i in range(0, len(packed), 76)),
    ]
    for image in given:
        assert source.page(PageClues(image=image)).pixels().tobytes() == page_image(0).tobytes()


def test_image_in_another_form_names_what_was_got() -> None:
    with pytest.raises(PageError, match="is a dict"):
        PageSource().page(PageClues(image={}))  # type: ignore[arg-type]
    with pytest.raises(PageError, match="neither base64"):
        PageSource().page(PageClues(image="not a picture!"))
    with pytest.raises(PageError, match="not base64"):
        PageSource().page(PageClues(image="data:image/svg+xml,%3Csvg%3E"))
    with pytest.raises(PageError, match="not an image that can be read"):
        PageSource().page(PageClues(image=b"hello"))


def test_pil_is_not_asked_about_pictures_it_must_not_open() -> None:
    assert set(Image.registered_extensions().values()) >= {"PNG", "JPEG"}
    with pytest.raises(PageError, match="Expected AVIF"):
        PageSource().page(PageClues(image=b"8BPS\0\1" + b"\0" * 20))


# Files


def test_image_file_and_text(tmp_path: Path) -> None:
    path = tmp_path / "scan.png"
    path.write_bytes(png(3))
    page = PageSource().page(PageClues(image_path=str(path), text="words", index=4))
    assert page.pixels().tobytes() == page_image(3).tobytes()
    assert (page.text, page.doc_id, page.index) == ("words", "scan.png", 4)


def test_text_alone_is_a_page_of_text() -> None:
    page = PageSource().page(PageClues(text="only words", doc_id="n1"))
    assert (page.image, page.text, page.doc_id) == (None, "only words", "n1")


def test_origin_that_is_no_picture_does_not_matter(tmp_path: Path) -> None:
    page = PageSource().page(PageClues(file_path=tmp_path / "notes.docx", text="words", index=2))
    assert page.image is None
    page = PageSource().page(PageClues(file_path="whole.pdf", text="a chunk of the whole file"))
    assert page.image is None


def test_an_image_path_is_what_its_bytes_say(tmp_path: Path) -> None:
    picture = tmp_path / "scan.pdf"
    picture.write_bytes(png())
    assert PageSource().page(PageClues(image_path=picture)).image == picture


@pytest.mark.parametrize("key", ["image_path", "file_path"])
def test_pdf_and_page(pdf: Path, key: str) -> None:
    page = PageSource().page(PageClues(**{key: pdf, "index": 2}))
    assert (page.index, page.text, page.doc_id) == (2, "sheet 2", "labelled.pdf")
    assert page.pixels().size[0] > 200


def test_pdf_in_memory(pdf: Path) -> None:
    page = PageSource().page(PageClues(image=pdf.read_bytes(), label="2", doc_id="mem"))
    assert (page.text, page.doc_id) == ("sheet 3", "mem")


@pytest.mark.parametrize(("label", "sheet"), [("i", 0), ("ii", 1), ("1", 2), ("2", 3)])
def test_printed_labels_lead_to_their_pages(pdf: Path, label: str, sheet: int) -> None:
    assert PageSource().page(PageClues(file_path=pdf, label=label)).text == f"sheet {sheet}"


def test_labels_of_a_pdf_without_any_count_from_one(plain_pdf: Path) -> None:
    assert PageSource().page(PageClues(file_path=plain_pdf, label="3")).text == "sheet 2"
    with pytest.raises(PageError, match="no page with the label 'iv'"):
        PageSource().page(PageClues(file_path=plain_pdf, label="iv"))


def test_pdf_without_a_page_is_refused_unless_it_has_one(plain_pdf: Path, tmp_path: Path) -> None:
    with pytest.raises(PageError, match="3 pages.*page_key"):
        PageSource().page(PageClues(file_path=plain_pdf))
    single = tmp_path / "single.pdf"
    document = pymupdf.open(plain_pdf)
    document.select([1])
    document.save(single)
    assert PageSource().page(PageClues(file_path=single)).text == "sheet 1"


def test_layout_is_found_on_request(pdf: Path) -> None:
    assert PageSource().page(PageClues(file_path=pdf, index=0)).regions == ()
    assert PageSource().page(PageClues(file_path=pdf, index=0), layout=True).regions


def test_nothing_to_score() -> None:
    with pytest.raises(PageError, match="d7 has nothing to score"):
        PageSource().page(PageClues(text=" ", doc_id="d7"))


# Trust: files


def test_allowed_root_holds_for_paths_links_and_dots(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (inside / "a.png").write_bytes(png())
    (outside / "b.png").write_bytes(png())
    (inside / "link.png").symlink_to(outside / "b.png")
    (inside / "folder").symlink_to(outside)
    source = PageSource(allowed_root=inside)
    assert source.page(PageClues(image_path=inside / "a.png")).image is not None
    for path in (outside / "b.png", inside / "link.png", inside / ".." / "out" / "b.png", inside / "folder" / "b.png"):
        with pytest.raises(PageError, match="outside the allowed folder"):
            source.page(PageClues(image_path=path))
    through = tmp_path / "root-link"
    through.symlink_to(inside)
    assert PageSource(allowed_root=through).page(PageClues(image_path=through / "a.png")).image is not None


@pytest.mark.parametrize("given", ["file:///etc/hostname", "ftp://host/a.png", "s3://bucket/a.png"])
def test_schemes_in_paths_are_refused(given: str) -> None:
    with pytest.raises(PageError, match="without a scheme"):
        PageSource().page(PageClues(image_path=given))


def test_missing_odd_and_special_files_are_refused(tmp_path: Path) -> None:
    for given in (tmp_path / "none.png", "nul\0.png", "a" * 5000 + ".png"):
        with pytest.raises(PageError, match="no such file") as caught:
            PageSource().page(PageClues(image_path=given))
        assert len(str(caught.value)) < 400
    with pytest.raises(PageError, match="not a plain file"):
        PageSource().page(PageClues(image_path=tmp_path))
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(PageError, match="not a plain file"):
        PageSource().page(PageClues(image_path=tmp_path / "pipe.png"))


def test_bytes_are_counted_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    source = PageSource(max_bytes=100)
    for clues in (
        PageClues(image_path=path),
        PageClues(image=png()),
        PageClues(image=base64.b64encode(png()).decode()),
    ):
        with pytest.raises(PageError, match="max_bytes allows 100"):
            source.page(clues)


def test_pixels_are_counted_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    source = PageSource(max_pixels=1000)
    for clues in (PageClues(image_path=path), PageClues(image=png()), PageClues(image=page_image(0))):
        with pytest.raises(PageError, match=r"96 x 128 pixels; max_pixels allows 1,000"):
            source.page(clues)


@pytest.mark.parametrize("size", [(9_000, 9_000), (10_000, 10_000), (60_000, 60_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused(size: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(PageError, match="pixels"):
        PageSource().page(PageClues(image=bomb(*size)))
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(*size))
    with pytest.raises(PageError, match="pixels"):
        PageSource().page(PageClues(image_path=path))


def test_formats_that_start_other_programs_are_refused() -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n"
    with pytest.raises(PageError, match="Expected AVIF"):
        PageSource().page(PageClues(image=eps))


@pytest.mark.parametrize("limits", [{"max_bytes": 0}, {"max_pixels": -1}, {"url_timeout": 0}, {"max_pixels": 10**9}])
def test_limits_are_checked(limits: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(limits))):
        PageSource(**limits)
