"""PDFs read by a worker process: the same pages, and no hostile one that holds this process up."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pymupdf
import pytest

from mmrh_retriever.adapters.clues import PageClues
from mmrh_retriever.adapters.page_sources import PageSource
from mmrh_retriever.errors import SettingsError
from mmrh_retriever.pdf import WorkerLimits, close_worker, isolated, reader
from mmrh_retriever.pdf.reader import PdfPageImage, read_pdf
from tests.pdf.made_pdfs import edited, failure, make_pdf

pytestmark = pytest.mark.usefixtures("backend")


def stalling(document: pymupdf.Document) -> None:
    """Let the second page draw ten forms that draw ten forms, and so on: ten thousand million in all."""
    last = None
    for _ in range(10):
        form = document.get_new_xref()
        used = f"/Resources<</XObject<</F {last} 0 R>>>>" if last else ""
        document.update_object(form, f"<</Type/XObject/Subtype/Form/BBox[0 0 600 800]{used}>>")
        document.update_stream(form, b"/F Do " * 10 if last else b"0 0 m 9 9 l S")
        last = form
    page = document[1]
    content = page.get_contents()[0]
    document.update_stream(content, b"/F Do " * 10)
    document.xref_set_key(page.xref, "Resources", f"<</XObject<</F {last} 0 R>>>>")


def swelling(document: pymupdf.Document) -> None:
    """Let the second page write sixty million letters, in a stream of 60 KB."""
    font = document.get_new_xref()
    document.update_object(font, "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>")
    page = document[1]
    letters = b"1 0 0 1 9 9 Tm (" + b"a" * 60 + b") Tj\n"
    document.update_stream(page.get_contents()[0], b"BT /F 1 Tf " + letters * 1_000_000 + b" ET")
    document.xref_set_key(page.xref, "Resources", f"<</Font<</F {font} 0 R>>>>")


def hostile(three: Path, change: Callable[[pymupdf.Document], None]) -> Path:
    path = three.with_name("hostile.pdf")
    path.write_bytes(edited(three.read_bytes(), change))
    return path


def test_pages_are_those_of_this_process(three: Path, backend: str) -> None:
    rich = edited(three.read_bytes(), lambda d: d.set_page_labels([{"startpage": 0, "style": "r"}]))
    options = {"layout": backend == "pymupdf"}
    for source in (three, rich):
        for one, other in zip(read_pdf(source, **options, isolate=True), read_pdf(source, **options), strict=True):
            for name in ("text", "doc_id", "index", "size", "label", "regions", "metadata"):
                assert getattr(one, name) == getattr(other, name), name
            assert bool(one.regions) == options["layout"]
            assert one.pixels().tobytes() == other.pixels().tobytes()


def test_this_process_opens_no_file(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pymupdf, "open", lambda *_, **__: pytest.fail("opened here"))
    assert read_pdf(three, isolate=True)[0].pixels().width > 0


def test_errors_are_those_of_this_process(three: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked.pdf"
    with pymupdf.open(three) as document:
        document.save(locked, encryption=pymupdf.PDF_ENCRYPT_AES_256, user_pw="right", owner_pw="owner")
    lost = edited(three.read_bytes(), lambda d: d.xref_set_key(d[2].xref, "MediaBox", "[0 0 1 1]"))
    for source in (locked, lost, tmp_path / "none.pdf"):
        one, other = failure(lambda s=source: read_pdf(s, isolate=True)), failure(lambda s=source: read_pdf(s))
        assert (str(one), one.source, one.page) == (str(other), other.source, other.page)
    assert len(read_pdf(locked, password="right", isolate=True)) == 3


def test_a_page_that_stalls_is_given_up(three: Path) -> None:
    path = hostile(three, stalling)
    limits = WorkerLimits(seconds=1.5)
    error = failure(lambda: read_pdf(path, isolate=limits))
    assert "Page 2 of hostile.pdf takes more than the 1.5 s" in str(error)
    assert (error.source, error.page) == (str(path), 1)
    pages = read_pdf(path, pages=[0, 2], isolate=limits)  # a fresh worker
    assert [page.text for page in pages] == ["First page", "Third page"]
    assert pages[1].pixels().width > 0


def test_a_page_that_takes_too_much_memory_is_given_up(three: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux holds a process to RLIMIT_AS")
    path = hostile(three, swelling)
    limits = WorkerLimits(memory=1024**3, seconds=300)
    error = failure(lambda: read_pdf(path, isolate=limits))
    assert "Page 2 of hostile.pdf" in str(error)
    assert "needs more than the 1,024 MiB of memory" in str(error)
    assert error.page == 1
    assert read_pdf(path, pages=[2], isolate=limits)[0].text == "Third page"


def test_a_worker_that_crashes(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = read_pdf(three, isolate=True)
    isolated._RUNNING[0].process.kill()  # between two requests: nobody notices
    isolated._RUNNING[0].process.wait()
    assert pages[0].pixels().width > 0
    send = isolated.write_frame

    def crash(*frame: object) -> None:
        isolated._RUNNING[0].process.kill()
        isolated._RUNNING[0].process.wait()
        send(*frame)  # type: ignore[arg-type]

    monkeypatch.setattr(isolated, "write_frame", crash)
    error = failure(pages[1].pixels)
    assert "Page 2 of three.pdf made its worker process end (exit status" in str(error)
    monkeypatch.undo()
    assert pages[1].pixels().width > 0


def test_an_interrupt_leaves_no_half_answer(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = read_pdf(three, isolate=True)

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(isolated, "read_frame", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pages[0].pixels()
    monkeypatch.undo()
    assert [page.text for page in read_pdf(three, isolate=True)] == ["First page", "Second page", "Third page"]


def test_files_take_turns(three: Path, tmp_path: Path) -> None:
    one, other = read_pdf(three, isolate=True), read_pdf(make_pdf(["Another"]), isolate=True)
    expected = [page.pixels().tobytes() for page in (*read_pdf(three), *read_pdf(make_pdf(["Another"])))]
    got: dict[int, bytes] = {}
    pages = [*one, *other]
    threads = [
        threading.Thread(target=lambda i=i: got.update({i: pages[i].pixels().tobytes()})) for i in range(len(pages))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(len(pages))] == expected


@pytest.mark.parametrize("backend", ["pymupdf"])  # PDFium says nothing of it
def test_damage_met_while_drawing_is_logged(three: Path, backend: str, caplog: pytest.LogCaptureFixture) -> None:
    def damage(document: pymupdf.Document) -> None:
        content = document[1].get_contents()[0]
        document.update_stream(content, document.xref_stream(content)[:60] + b" ]] >> ((( foo bar BT 1 2 3 baz ")

    pages = read_pdf(hostile(three, damage), strict=False, isolate=True, backend=backend)
    assert any("syntax error" in warning for warning in pages[1].metadata["warnings"])
    pages[1].pixels()
    assert "Page 2 of hostile.pdf" in caplog.text


def test_page_images_travel_between_processes(three: Path) -> None:
    image = read_pdf(three, isolate=True)[2].image
    assert isinstance(image, PdfPageImage)
    assert pickle.loads(pickle.dumps(image)).load().tobytes() == image.load().tobytes()  # noqa: S301


def test_the_main_module_need_not_be_importable(three: Path, tmp_path: Path) -> None:
    (tmp_path / "types.py").write_text("raise SystemExit('imported from the working directory')")
    program = "import sys; from mmrh_retriever import read_pdf; print(read_pdf(sys.argv[1], isolate=True)[1].text)"
    ran = subprocess.run(
        [sys.executable, "-P" if sys.version_info >= (3, 11) else "-B", "-c", program, str(three)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(reader.__file__).parents[2])},
        capture_output=True,
        check=False,
    )
    assert (ran.stdout.decode().strip(), ran.stderr.decode()) == ("Second page", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*")
def test_a_forked_process_starts_its_own_worker(three: Path) -> None:
    page = read_pdf(three, isolate=True)[0]
    expected = page.pixels().tobytes()
    child = os.fork()
    if child == 0:
        same = page.pixels().tobytes() == expected
        close_worker()
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert page.pixels().tobytes() == expected


def test_documents_of_other_programs_may_be_isolated(three: Path) -> None:
    source = PageSource(isolate=WorkerLimits(seconds=1.5))
    path = hostile(three, stalling)
    page = source.page(PageClues(file_path=path, index=2))
    assert page.text == "Third page"
    assert isinstance(page.image, PdfPageImage)
    assert page.image.file.limits == WorkerLimits(seconds=1.5)
    assert "takes more than the 1.5 s" in str(failure(lambda: source.page(PageClues(file_path=path, index=1))))
    labelled = edited(three.read_bytes(), lambda d: d.set_page_labels([{"startpage": 0, "style": "r"}]))
    three.write_bytes(labelled)
    assert source.page(PageClues(file_path=three, label="ii")).text == "Second page"


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"memory": -1}, {"seconds": float("nan")}])
def test_limits_are_positive(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        WorkerLimits(**wrong)  # type: ignore[arg-type]
