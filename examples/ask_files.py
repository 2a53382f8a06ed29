"""Ask a library: PDF and image files, or folders of them, from plain Python, offline.

    python examples/ask_files.py [FILE_OR_FOLDER ...] [--question QUESTION] [--first-stage hybrid] [--folder KEPT]

A first stage picks pages by their text for each question; the small model that ships with the package ranks them.
With --folder, texts and encoded pages are kept there for the next run.
"""

import argparse
import json
import time
from pathlib import Path

from mmrh_retriever import Library

HERE = Path(__file__).parent


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Ask PDF and image files.")
    parser.add_argument("files", type=Path, nargs="*", default=[HERE / "sample_report.pdf"])
    parser.add_argument("--question", help="the sample report's questions by default")
    parser.add_argument("--first-stage", default="bm25", choices=["bm25", "embedding", "hybrid", "all"])
    parser.add_argument("--candidates", type=int, default=4, help="pages that the first stage picks (default: 4)")
    parser.add_argument("--folder", type=Path, help="where texts and encoded pages are kept")
    given = parser.parse_args(arguments)
    asked = [given.question]
    if given.question is None:
        sample = json.loads((HERE / "sample_questions.json").read_text(encoding="utf-8"))[:3]
        asked = [one["question"] for one in sample]

    library = Library(
        given.files, first_stage=given.first_stage, candidates=given.candidates, folder=given.folder, on_error="skip"
    )
    print(f"{len(library.pages)} pages")
    for question in asked:
        start = time.perf_counter()
        best = library.rank(question, top_n=3, progress=True)
        print(f"\n{question}  ({time.perf_counter() - start:.1f} s)")
        for scored in best:
            print(f"  {scored.rank}. {scored.page.doc_id}, page {scored.page.number}: {scored.score:.3f}")
    for skipped in library.skipped:
        print(f"Left out: {skipped.error}")


if __name__ == "__main__":
    main()
