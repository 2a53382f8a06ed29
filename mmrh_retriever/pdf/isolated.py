"""PDFs that are read by another process, so that a hostile one takes neither this one's time nor its memory.

One worker process at a time reads and draws for this process. It is killed when a request takes too long, and whenever
it fails; the next request starts a fresh one. The worker imports nothing of the caller's main module.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import IO, Any, cast

from PIL import Image

from mmrh_retriever.errors import PageError
from mmrh_retriever.pdf.frames import read_frame, write_frame
from mmrh_retriever.pdf.pages import PageContent
from mmrh_retriever.pdf.pdf_file import PdfFile, WorkerLimits
from mmrh_retriever.types import Region

_START_SECONDS = 120.0  # for importing what a worker needs, on a busy machine
# The package's own __init__ would import torch: the worker gets a bare package with the same folder.
_START = """
import sys, types
memory, seconds, package, *sys.path = sys.argv[1:]
sys.modules["mmrh_retriever"] = types.ModuleType("mmrh_retriever")
sys.modules["mmrh_retriever"].__path__ = [package]
from mmrh_retriever.pdf.worker import main
main(int(memory), float(seconds))
"""
Answer = tuple[dict[str, Any], bytes]


class IsolatedPdf:
    """A PDF that a worker process reads: an :class:`~mmrh_retriever.pdf.pages.OpenPdf` at a distance.

    Raises:
        PageError: the file can't be opened as a PDF, or not within the limits.
    """

    def __init__(self, file: PdfFile) -> None:
        self.file = file
        answer, _ = _ask(file, None)
        self.total, self.title = int(answer["total"]), str(answer["title"])

    def read(self, index: int, *, layout: bool) -> PageContent:
        """The content of the page at ``index``, with its regions if ``layout`` is set.

        Raises:
            PageError: a page that is damaged, too small, too large, or that is not read within the limits.
        """
        answer, _ = _ask(self.file, index, layout=layout)
        regions = tuple(Region(tuple(found.pop("box")), **found) for found in answer.pop("regions"))
        return PageContent(**{**answer, "size": tuple(answer["size"])}, regions=regions)


def draw_isolated(file: PdfFile, index: int, width: int, height: int) -> tuple[Image.Image, list[str]]:
    """What a backend's ``draw_page`` gives, drawn by the worker."""
    answer, pixels = _ask(file, index, width=width, height=height)
    return Image.frombytes("RGB", tuple(answer["size"]), pixels), answer["warnings"]


class _Worker:
    """A process, its pipes, and which file it has open."""

    def __init__(self, limits: WorkerLimits) -> None:
        self.limits = limits
        self.file: weakref.ref[PdfFile] | None = None
        self.late = False
        package, paths = str(Path(__file__).parents[1]), [path for path in sys.path if path]
        self.process = subprocess.Popen(  # this Python, arguments of our own  # noqa: S603  # nosec B603
            [sys.executable, "-I", "-c", _START, str(limits.memory), str(limits.seconds), package, *paths],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip

    def ask(self, request: dict[str, Any] | None, data: bytes, seconds: float) -> Answer | None:
        """The answer to a request, or ``None`` if the process ended, or was killed for taking too long."""
        timer = threading.Timer(seconds, self._expire)
        timer.daemon = True
        timer.start()
        try:
            if request is not None:
                write_frame(cast(IO[bytes], self.process.stdin), request, data)
            answer = read_frame(cast(IO[bytes], self.process.stdout))
        except OSError:  # a broken pipe: the process has ended
            answer = None
        finally:
            timer.cancel()
            timer.join()
        return None if self.late else answer

    def _expire(self) -> None:
        self.late = True
        self.process.kill()

    def end(self) -> int:
        """End the process, and give its exit status."""
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # what was to be written is of no use any more
                cast(IO[bytes], pipe).close()
        try:
            return self.process.wait(timeout=1.0)  # it ends with its pipes, unless it is busy
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


# The one worker

_LOCK = threading.Lock()
_RUNNING: list[_Worker] = []  # one at most
_ABANDONED: list[_Worker] = []


def _after_fork() -> None:
    # A child shares its parent's pipes: it must neither use nor end the parent's worker.
    global _LOCK
    _ABANDONED.extend(_RUNNING)
    _RUNNING.clear()
    _LOCK = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def close_worker() -> None:
    """End the worker process, if one runs. Pages stay usable: they start another."""
    with _LOCK:
        _end()


atexit.register(close_worker)


def _end() -> int | None:
    return _RUNNING.pop().end() if _RUNNING else None


def _ask(file: PdfFile, page: int | None, **request: Any) -> Answer:
    """The worker's answer about a page, or about the file itself if ``page`` is ``None``."""
    with _LOCK:
        worker = _worker_for(file)
        if page is None or worker.file is None or worker.file() is not file:
            worker.file = None
            path = None if file.path is None else str(file.path)
            described = {
                "name": file.name,
                "path": path,
                "password": file.password,
                "strict": file.strict,
                "stamp": file.stamp,
                "backend": file.backend,
            }
            opened = _exchange(worker, file, page, {"file": described}, file.data or b"")
            worker.file = weakref.ref(file)
            if page is None:
                return opened
        return _exchange(worker, file, page, {"page": page, **request})


def _worker_for(file: PdfFile) -> _Worker:
    limits = file.limits or WorkerLimits()
    if _RUNNING and (_RUNNING[0].limits != limits or _RUNNING[0].process.poll() is not None):
        _end()
    if not _RUNNING:
        _RUNNING.append(_Worker(limits))
        _exchange(_RUNNING[0], file, None, None)
    return _RUNNING[0]


def _exchange(
    worker: _Worker, file: PdfFile, page: int | None, request: dict[str, Any] | None, data: bytes = b""
) -> Answer:
    seconds, memory = worker.limits.seconds, worker.limits.memory
    try:
        answer = worker.ask(request, data, _START_SECONDS if request is None else seconds)
    except BaseException:
        _end()  # an interrupt leaves half an answer in the pipe
        raise
    if answer is not None and "error" in answer[0]:
        raise PageError(answer[0]["error"], source=file.source, page=answer[0]["page"])
    if answer is not None and "out_of_memory" not in answer[0]:
        return answer
    status = _end()
    if request is None:
        problem = f"can't be read: the worker process does not start (exit status {status})"
    elif answer is not None:
        problem = f"needs more than the {memory / 2**20:,.0f} MiB of memory that its worker process has"
    elif worker.late or status == -getattr(signal, "SIGXCPU", 0):
        problem = f"takes more than the {seconds:g} s that its worker process has"
    else:
        problem = f"made its worker process end (exit status {status}): it is damaged or hostile"
        if file.backend == "pdfium":  # which ends the process when there is no memory left
            problem += f", or needs more than the {memory / 2**20:,.0f} MiB of memory there"
    raise file.error(f"{problem}. Leave it out, or raise the limits with isolate=WorkerLimits(...).", page)
