"""The worker process: reads and draws pages of one PDF at a time, within limits that the system holds it to."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import signal
import sys
from pathlib import Path
from typing import IO, Any

from mmrh_retriever.errors import PageError
from mmrh_retriever.pdf.backends import backend_of
from mmrh_retriever.pdf.frames import read_frame, write_frame
from mmrh_retriever.pdf.pages import OpenPdf
from mmrh_retriever.pdf.pdf_file import PdfFile

try:
    import resource
except ImportError:  # Windows: the parent's clock is the only limit
    resource = None  # type: ignore[assignment]

_OUT_OF_MEMORY = re.compile(r"\b(m|c|re)alloc\b|out of memory", re.IGNORECASE)
Answer = tuple[dict[str, Any], bytes]


def main(memory: int, seconds: float) -> None:
    """Answer requests on stdin until it ends, with at most ``memory`` bytes, each within ``seconds`` of computing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    _limit("RLIMIT_CORE", 0)
    _limit("RLIMIT_AS", memory)
    _serve(sys.stdin.buffer, answers, seconds)


def _serve(requests: IO[bytes], answers: IO[bytes], seconds: float) -> None:
    document: OpenPdf | None = None
    file = PdfFile("")
    write_frame(answers, {"ready": True})
    while (frame := read_frame(requests)) is not None:
        if resource is not None:  # the parent's clock ends it earlier, but for one without a parent
            used = resource.getrusage(resource.RUSAGE_SELF)
            _limit("RLIMIT_CPU", math.ceil(used.ru_utime + used.ru_stime + seconds) + 1)
        try:
            if "file" in frame[0]:
                document = None
                file = _file(*frame)
                document = backend_of(file.backend).open_pdf(file)
                answer: Answer = {"total": document.total, "title": document.title}, b""
            else:
                answer = _page(document, file, frame[0])
        except MemoryError:
            answer = {"out_of_memory": True}, b""
        except PageError as error:
            answer = {"error": str(error), "page": error.page}, b""
        if any(map(_OUT_OF_MEMORY.search, [answer[0].get("error", ""), *answer[0].get("warnings", ())])):
            answer = {"out_of_memory": True}, b""
        write_frame(answers, *answer)


def _file(request: dict[str, Any], data: bytes) -> PdfFile:
    described = request["file"]
    path, stamp = described.pop("path"), described.pop("stamp")
    return PdfFile(
        **described,
        path=Path(path) if path is not None else None,
        data=data if path is None else None,
        stamp=tuple(stamp) if stamp is not None else None,
    )


def _page(document: OpenPdf | None, file: PdfFile, request: dict[str, Any]) -> Answer:
    if document is None:
        raise PageError("No file is open. Expected a request to open one first.")
    if "width" in request:
        image, warnings = backend_of(file.backend).draw_page(file, request["page"], request["width"], request["height"])
        return {"size": image.size, "warnings": warnings}, image.tobytes()
    return dataclasses.asdict(document.read(request["page"], layout=request["layout"])), b""


def _limit(name: str, value: int) -> None:
    """Set one of the system's limits for this process, where the system has it."""
    kind = getattr(resource, name, None)
    if kind is None:
        return
    _, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY or value <= hard:
        with contextlib.suppress(OSError, ValueError):  # macOS knows RLIMIT_AS and does not take it
            resource.setrlimit(kind, (value, hard))
