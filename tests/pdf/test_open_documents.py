"""Open documents and drawn pages: how little is held, in threads, forks and other processes."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import pickle
import shutil
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pymupdf
import pytest
from PIL import Image

from mmrh_retriever.pdf import close_documents, mupdf
from mmrh_retriever.pdf.open_documents import MAX_OPEN_DOCUMENTS
from mmrh_retriever.pdf.pdf_file import PdfFile, stamp_of
from mmrh_retriever.pdf.reader import PdfPageImage, iter_pdf, read_pdf
from tests.pdf.made_pdfs import failure, make_pdf

pytestmark = pytest.mark.usefixtures("backend")


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
    pages = iter_pdf(three, backend="pymupdf")
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
    assert 0 < open_files(tmp_path) <= MAX_OPEN_DOCUMENTS
    close_documents()
    assert open_files(tmp_path) == 0
    assert pages[0].pixels().width > 0


def test_a_file_that_could_not_be_closed_is_not_taken_for_another(three: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pdf"
    made = pymupdf.open()
    made.new_page(width=50, height=60)
    made.save(other)
    close_documents()
    gone = PdfFile("three.pdf", path=three, stamp=stamp_of(PdfFile("three.pdf", path=three)))
    with mupdf.open_document(gone):
        pass
    key = id(gone)
    held, done = threading.Event(), threading.Event()

    def use_mupdf() -> None:
        with mupdf.using_mupdf():
            held.set()
            done.wait()

    thread = threading.Thread(target=use_mupdf)
    thread.start()
    held.wait()
    del gone  # MuPDF is busy: the file stays open
    done.set()
    thread.join()
    file = PdfFile("other.pdf", path=other, stamp=stamp_of(PdfFile("other.pdf", path=other)))
    mupdf._OPEN._open[id(file)] = mupdf._OPEN._open.pop(key)
    with mupdf.open_document(file) as document:
        assert document.page_count == 1


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
    close_documents()
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
