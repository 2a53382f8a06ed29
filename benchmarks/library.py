"""A library of many pages: time to add, to encode, to open again and to answer, and peak memory: a table.

    OMP_NUM_THREADS=1 python benchmarks/library.py [FILE.pdf ...] --pages 1000 [--page-pixels N] [--first-stage hybrid]

Pages with text are taken from the files in turn, again and again, into documents of 50 pages. Questions are words of a
page drawn at random, another one each time. Each step is a process of its own with the bundled model; its memory is the
peak of that process. Seconds are those of the clock and, in brackets, of the CPU, which other programs disturb least;
both without the imports.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymupdf

from mmrh_retriever import Library

SAMPLE = Path(__file__).parents[1] / "examples" / "sample_report.pdf"
PAGES_PER_DOCUMENT = 50
STEPS = {
    "add": "add: read all files",
    "unencoded": "questions whose pages are encoded now",
    "encode": "encode all pages",
    "open": "open again",
    "questions": "questions",
}


def write_documents(sources: list[Path], count: int, folder: Path) -> None:
    """PDFs of so many pages together: one page with text of each source in turn, again and again."""
    opened = [pymupdf.open(source) for source in sources]
    rows = [[(document, page.number) for page in document if page.get_text().strip()] for document in opened]
    longest = max(map(len, rows))
    turns = [row[number] for number in range(longest) for row in rows if number < len(row)]
    if not turns:
        sys.exit("None of these files has a page with text.")
    chosen = list(itertools.islice(itertools.cycle(turns), count))
    for start in range(0, count, PAGES_PER_DOCUMENT):
        made = pymupdf.open()
        for document, number in chosen[start : start + PAGES_PER_DOCUMENT]:
            made.insert_pdf(document, from_page=number, to_page=number, links=False, annots=False)
        made.save(folder / f"{start:06d}.pdf", garbage=2)


def questions(library: Library, count: int, seed: int) -> Iterator[str]:
    """Questions in the words of pages drawn at random."""
    drawn = random.Random(seed)
    words = [sorted({*re.findall(r"[^\W\d_]{3,20}", page.text or "")}) for page in library.pages]
    pages = [own for own in words if len(own) >= 5]
    for _ in range(count):
        yield f"What about {' '.join(drawn.sample(drawn.choice(pages), 5))}?"


Seconds = tuple[float, float]
"""Of the clock, and of the CPU."""


def timed(action: Callable[[], object]) -> Seconds:
    """What an action takes."""
    clock, cpu = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - clock, time.process_time() - cpu


def run(step: str, files: Path, folder: Path, count: int, settings: dict[str, Any]) -> list[Seconds]:
    """What each part of a step takes."""
    library = Library(files, folder=folder, **settings)
    opened = timed(library.refresh)
    if step == "encode":
        return [timed(library.encode)]
    if step not in ("unencoded", "questions"):
        return [opened]
    asked = questions(library, count, seed=len(step))
    loading = timed(lambda: library.reranker)
    return [loading, *(timed(lambda asking=asking: library.rank(asking, top_n=5)) for asking in asked)]


def measured(step: str, arguments: list[str]) -> tuple[list[Seconds], float]:
    """What a step's own process prints, and its peak of memory in megabytes."""
    command = [sys.executable, __file__, "--step", step, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:  # noqa: S603
        printed = child.stdout.read() if child.stdout else ""
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{step} ended with {child.returncode}")
    return json.loads(printed), used.ru_maxrss / 1024


def rows(step: str, parts: list[Seconds], peak: float, pages: int) -> list[str]:
    """The lines of the table for a step."""

    def line(name: str, clock: Any, cpu: Any, memory: str) -> str:
        return f"| {STEPS[step]}{name} | {clock} ({cpu}) | {memory} |"

    if step not in ("unencoded", "questions"):
        clock, cpu = parts[0]
        return [line(f", {1000 * cpu / pages:.1f} CPU ms a page", f"{clock:.2f}", f"{cpu:.2f}", f"{peak:.0f}")]
    loading, first, *later = parts
    columns = list(zip(*later, strict=True))
    median, largest = ([f"{of(column):.2f}" for column in columns] for of in (statistics.median, max))
    return [
        line(": the model's loading", *(f"{part:.2f}" for part in loading), ""),
        line(": the first", *(f"{part:.2f}" for part in first), ""),
        line(f": {len(later)} more, median", *median, f"{peak:.0f}"),
        line(f": {len(later)} more, largest", *largest, ""),
    ]


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="*", help="PDF files; the sample report by default")
    parser.add_argument("--pages", type=int, default=1000)
    parser.add_argument("--questions", type=int, default=31, help="questions of pages that are kept (default: 31)")
    parser.add_argument("--unencoded", type=int, default=4, help="questions before anything is encoded (default: 4)")
    parser.add_argument("--first-stage", default="bm25", choices=["bm25", "embedding", "hybrid"])
    parser.add_argument("--candidates", type=int, help="pages that the first stage picks")
    parser.add_argument("--page-pixels", type=int, help="pixels that a page is drawn with")
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--folder", type=Path, help="keep documents and library here, to go on with --steps")
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    chosen = parser.parse_args(given)
    settings = {"first_stage": chosen.first_stage, "candidates": chosen.candidates, "page_pixels": chosen.page_pixels}
    settings = {name: value for name, value in settings.items() if value is not None}
    if chosen.step is not None:
        count = chosen.unencoded if chosen.step == "unencoded" else chosen.questions
        seconds = run(chosen.step, chosen.folder / "documents", chosen.folder / "library", count, settings)
        print(json.dumps(seconds))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        if not (folder / "documents").is_dir():
            (folder / "documents").mkdir(parents=True)
            write_documents(chosen.sources or [SAMPLE], chosen.pages, folder / "documents")
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        arguments += [f"--questions={chosen.questions}", f"--unencoded={chosen.unencoded}", f"--folder={folder}"]
        print(f"| {chosen.pages:,} pages | seconds (CPU) | peak MB |\n|---|---|---|", flush=True)
        for step in chosen.steps:
            print("\n".join(rows(step, *measured(step, arguments), chosen.pages)), flush=True)


if __name__ == "__main__":
    main()
