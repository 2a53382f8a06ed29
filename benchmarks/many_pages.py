"""Time and peak memory of ``mmrh rank`` by the number of pages: a table. Pages are those of PDF files, repeated.

    OMP_NUM_THREADS=1 python benchmarks/many_pages.py [FILE.pdf ...] --pages 50 500 2000 [--max-pixels N]

Each count is a process of its own with the bundled model. Seconds are those of the CPU, which other programs disturb
least.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pymupdf

SAMPLE = Path(__file__).parents[1] / "examples" / "sample_report.pdf"


def write_pages(sources: list[Path], count: int, path: Path) -> None:
    """A PDF of so many pages: one of each source in turn, again and again."""
    made = pymupdf.open()
    opened = [pymupdf.open(source) for source in sources]
    numbers = (
        (document, number % document.page_count) for number in itertools.count() for document in opened
    )  # of a short document, its pages again
    for document, number in itertools.islice(numbers, count):
        made.insert_pdf(document, from_page=number, to_page=number, links=False, annots=False)
    made.save(path, garbage=2)


def measure(path: Path, options: list[str]) -> tuple[float, float]:
    """Seconds of CPU and MiB at the peak of one ``mmrh rank``."""
    command = [sys.executable, "-m", "mmrh_retriever.cli.main", "rank", str(path), "How did revenue change?", "--json"]
    command += options
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603
    _, status, used = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"mmrh rank ended with {os.waitstatus_to_exitcode(status)}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, nargs="+", default=[50, 500])
    parser.add_argument("sources", type=Path, nargs="*", default=[SAMPLE])
    parser.add_argument("--max-pixels", help="As for mmrh rank.")
    given = parser.parse_args()
    print("| pages | CPU s | CPU s per page | peak MiB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for count in given.pages:
            path = Path(folder) / f"{count}.pdf"
            write_pages(given.sources or [SAMPLE], count, path)
            seconds, peak = measure(path, ["--max-pixels", given.max_pixels] if given.max_pixels else [])
            print(f"| {count} | {seconds:.0f} | {seconds / count:.2f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
