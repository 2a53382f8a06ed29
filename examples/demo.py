"""The plain-Python way in: rank the pages of a PDF for three questions, offline, and draw where the evidence is.

    python examples/demo.py [--out FOLDER]

Reads examples/sample_report.pdf with the small model that ships with the package. Pages are encoded once. Each question
then runs its own tokens only.
"""

import argparse
import json
import time
from pathlib import Path

from mmrh_retriever import Reranker, read_pdf
from mmrh_retriever.explain import save_heat_map

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the heat map (default: out)")
    out = parser.parse_args().out
    questions = json.loads((HERE / "sample_questions.json").read_text(encoding="utf-8"))[:3]

    pages = read_pdf(HERE / "sample_report.pdf")
    reranker = Reranker.from_pretrained()
    start = time.perf_counter()
    encoded = reranker.encode(pages, progress=True)
    print(f"{len(pages)} page images encoded in {time.perf_counter() - start:.1f} s (no OCR: page 7 is a scan)\n")

    for asked in questions:
        start = time.perf_counter()
        top = encoded.rank(asked["question"], top_n=3, with_tokens=True)
        milliseconds = 1000 * (time.perf_counter() - start)
        print(f"{asked['question']}  (the answer is on page {asked['page']}; {milliseconds:.0f} ms)")
        for scored in top:
            print(f"  {scored.rank}. page {scored.page.number:<3} {scored.score:+.4f}")
        print()
        if asked is questions[0]:
            path = save_heat_map(top[0], out / "heat_map.png")
    print(f"Heat map of the first question's best page: {path}")


if __name__ == "__main__":
    main()
