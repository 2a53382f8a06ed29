"""PDF pages: what is read, what is drawn, what is refused, and how little is held."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import pickle
import re
import shutil
import threading
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pymupdf
import pytest
from PIL import Image

from mmrh_retriever.errors import PageError
from mmrh_retriever.pdf import mupdf, reader
from mmrh_retriever.pdf.reader import MAX_RENDERED_PIXELS, PdfPageImage, iter_pdf, parse_page_range, read_pdf

A4 = (595.0, 842.0)


@pytest.fixture(autouse=True)
def _nothing_left_open() -> Iterable[None]:
    yield
    mupdf.close_documents()


def make_pdf(texts: Iterable[str], size: tuple[float, float] = A4) -> bytes:
    with pymupdf.open() as document:
        for text in texts:
            page = document.new_page(width=size[0], height=size[1])
            if text:
                page.insert_textbox((72, 72, size[0] - 40, size[1] - 40), text, fontsize=12)
        return bytes(document.tobytes(deflate=True))


@pytest.fixture
def three(tmp_path: Path) -> Path:
    path = tmp_path / "three.pdf"
    path.write_bytes(make_pdf(["First page", "Second page", "Third page"]))
    return path


def edited(data: bytes, change: Callable[[pymupdf.Document], None]) -> bytes:
    with pymupdf.open(stream=data) as document:
        change(document)
        return bytes(document.tobytes())


def failure(call: Callable[[], object]) -> PageError:
    with pytest.raises(PageError) as caught:
        call()
    return caught.value


def dark_box(image: Image.Image) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero(np.asarray(image.convert("L")) < 128)
    return int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max())


# What is read


def test_pages_carry_text_place_and_metadata(three: Path) -> None:
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


def test_same_names_are_told_apart_by_path(three: Path, tmp_path: Path) -> None:
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
    data = make_pdf(["x"], (20_000, 20_000))
    assert read_pdf(data)[0].size == (20_000, 20_000)
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


# What is held


def test_pixels_are_never_held(tmp_path: Path) -> None:
    path = tmp_path / "long.pdf"
    path.write_bytes(make_pdf(f"Page {i}" for i in range(500)))
    tracemalloc.start()
    try:
        pages = read_pdf(path)
        assert len(pages) == 500
        assert tracemalloc.get_traced_memory()[0] < 5_000_000  # one page alone has 6,000,000 bytes of pixels
        for page in pages[::100]:
            page.pixels()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 5_000_000
    finally:
        tracemalloc.stop()


def test_decoded_pictures_are_let_go(tmp_path: Path) -> None:
    path = tmp_path / "pictures.pdf"
    rng = np.random.default_rng(0)
    with pymupdf.open() as document:
        for _ in range(45):
            noise = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
            jpeg = io.BytesIO()
            Image.fromarray(noise).resize((1200, 900)).save(jpeg, "JPEG")  # 3 MB of pixels, decoded
            document.new_page(width=400, height=300).insert_image((0, 0, 400, 300), stream=jpeg.getvalue())
        document.save(path)
    pages = read_pdf(path)
    pages[0].pixels()
    before = resident_bytes()
    for page in pages[1:]:
        page.pixels()
    assert resident_bytes() - before < 60_000_000


def resident_bytes() -> int:
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("needs /proc/self/statm to see memory outside Python")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_pages_are_read_as_they_are_taken(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = pymupdf.Document.load_page

    def spy(self: pymupdf.Document, index: int) -> pymupdf.Page:
        read.append(index)
        return original(self, index)

    monkeypatch.setattr(pymupdf.Document, "load_page", spy)
    pages = iter_pdf(three)
    assert read == []
    assert next(pages).text == "First page"
    assert read == [0]


def test_iter_pdf_refuses_at_once(tmp_path: Path) -> None:
    failure(lambda: iter_pdf(tmp_path / "none.pdf"))


def open_files(of: Path) -> int:
    links = Path("/proc/self/fd")
    if not links.exists():
        pytest.skip("needs /proc/self/fd to count open files")
    count = 0
    for link in list(links.iterdir()):
        with contextlib.suppress(OSError):
            count += str(link.readlink()).startswith(str(of))
    return count


def test_few_files_stay_open(three: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.pdf" for i in range(12)]
    for path in paths:
        shutil.copy(three, path)
    pages = [page for path in paths for page in read_pdf(path)]
    for page in pages:
        page.pixels()
    assert 0 < open_files(tmp_path) <= mupdf.MAX_OPEN_DOCUMENTS
    mupdf.close_documents()
    assert open_files(tmp_path) == 0
    assert pages[0].pixels().width > 0


def test_a_file_is_closed_with_its_last_page(three: Path) -> None:
    pages = read_pdf(three)
    pages[0].pixels()
    assert open_files(three) == 1
    del pages
    gc.collect()
    assert open_files(three) == 0


def test_pages_opened_again_show_the_same(three: Path) -> None:
    page = read_pdf(three)[1]
    first = page.pixels()
    mupdf.close_documents()
    assert page.pixels().tobytes() == first.tobytes()


def test_page_images_travel_between_processes(three: Path) -> None:
    for source in (three, three.read_bytes()):
        image = read_pdf(source)[2].image
        assert isinstance(image, PdfPageImage)
        copy = pickle.loads(pickle.dumps(image))  # noqa: S301
        assert copy.load().tobytes() == image.load().tobytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*")
def test_a_forked_process_opens_its_own_file(three: Path) -> None:
    page = read_pdf(three)[0]
    expected = page.pixels().tobytes()
    child = os.fork()
    if child == 0:
        os._exit(0 if page.pixels().tobytes() == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert page.pixels().tobytes() == expected


def test_threads_may_draw_at_once(three: Path) -> None:
    pages = read_pdf(three, max_pixels=20_000) * 5
    expected = [page.pixels().tobytes() for page in pages]
    got: dict[int, bytes] = {}

    def draw(i: int) -> None:
        got[i] = pages[i].pixels().tobytes()

    threads = [threading.Thread(target=draw, args=(i,)) for i in range(len(pages))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(len(pages))] == expected


def test_a_changed_file_is_noticed(three: Path) -> None:
    pages = read_pdf(three)
    pages[0].pixels()
    three.write_bytes(make_pdf(["Something", "else", "entirely", "now"]))
    error = failure(pages[1].pixels)
    assert "three.pdf" in str(error)
    assert "changed" in str(error)
    assert error.page == 1
    three.unlink()
    assert "no such file" in str(failure(pages[1].pixels))


def test_a_password_does_not_show(three: Path) -> None:
    with pymupdf.open(three) as document:
        data = document.tobytes(encryption=pymupdf.PDF_ENCRYPT_AES_256, user_pw="secret-word", owner_pw="other")
    page = read_pdf(data, password="secret-word")[0]
    assert page.text == "First page"
    assert page.pixels().width > 0
    assert "secret-word" not in repr(page)


# What is refused


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


def damage(document: pymupdf.Document) -> None:
    xref = document[1].get_contents()[0]
    content = document.xref_stream(xref)
    document.update_stream(xref, content[:60] + b" ]] >> ((( foo bar BT 1 2 3 baz " + content[60:])


def test_damaged_content(three: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = edited(three.read_bytes(), damage)
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


def test_a_missing_content_stream(three: Path) -> None:
    data = edited(three.read_bytes(), lambda d: d.xref_set_key(d[2].xref, "Contents", "999 0 R"))
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
    page = read_pdf(three)[0]
    monkeypatch.setattr(pymupdf.TOOLS, "mupdf_warnings", lambda: "openjpeg warning: odd\n... repeated 3 times...")
    assert page.pixels().width > 0
    assert caplog.text == ""
    assert read_pdf(three)[0].metadata["warnings"] == ["openjpeg warning: odd"]


def test_messages_of_other_mupdf_users_stay_theirs(three: Path) -> None:
    shown = pymupdf.TOOLS.mupdf_display_errors()
    read_pdf(three)[0].pixels()
    assert pymupdf.TOOLS.mupdf_display_errors() == shown
