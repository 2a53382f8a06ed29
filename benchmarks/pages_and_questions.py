"""Cost against pages and questions: seconds and ratios, a plot, and whether cost is linear across windows.

    python benchmarks/pages_and_questions.py --out out/            # the bundled model
    python benchmarks/pages_and_questions.py --model random --pages 5,10,20,40 --linear 0 --out out/

Four things take turns and are timed several times each: the paper's procedure on plain transformers (two full passes
over all pages; only up to ``--plain-pages``, since it grows with the square), the first question on pages never seen, a
further question on encoded pages, and several questions together. ``--linear 500,50`` ranks 500 pages at once against
10 times 50. Writes ``pages_and_questions.json`` and, with matplotlib (``pip install mmrh-retriever[plot]``), a PNG.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from mmrh_retriever import Reranker
from mmrh_retriever.benchmark.pairs import PlainProcedure, rank_anew, sample_pages, sample_questions
from mmrh_retriever.benchmark.random_models import reranker_to_measure
from mmrh_retriever.runs.figures import figure


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part.strip()]


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def by_pages(reranker: Reranker, counts: list[int], plain_pages: int, rounds: int) -> list[dict[str, float]]:
    """Median seconds at each number of pages."""
    rows = []
    question = sample_questions(1)[0]
    for count in counts:
        pages = sample_pages(count)
        encoded = reranker.encode(pages)
        plain = PlainProcedure(reranker, pages)
        found: dict[str, list[float]] = {"first": [], "further": [], "plain": []}
        for _ in range(rounds):
            found["first"].append(timed(lambda pages=pages: rank_anew(reranker, question, pages)))  # type: ignore[misc]
            found["further"].append(timed(lambda encoded=encoded: encoded.rank(question)))  # type: ignore[misc]
            if count <= plain_pages:
                found["plain"].append(timed(lambda plain=plain: plain.rank(question)))  # type: ignore[misc]
        row = {name: statistics.median(values) for name, values in found.items() if values}
        rows.append({"pages": count, "tokens": encoded.tokens, **row})
        print(rows[-1], flush=True)
    return rows


def by_questions(reranker: Reranker, pages: int, counts: list[int], rounds: int) -> list[dict[str, float]]:
    """Median seconds at each number of questions, asked together and singly."""
    encoded = reranker.encode(sample_pages(pages))
    encoded.rank(sample_questions(1)[0])
    rows = []
    for count in counts:
        asked = sample_questions(count)
        together, singly = [], []
        for _ in range(rounds):
            singly.append(timed(lambda asked=asked: [encoded.rank(question) for question in asked]))  # type: ignore[misc]
            together.append(timed(lambda asked=asked: encoded.rank_many(asked)))  # type: ignore[misc]
        ratios = [one / other for one, other in zip(singly, together, strict=True)]
        rows.append(
            {
                "questions": count,
                "pages": pages,
                "together": statistics.median(together),
                "singly": statistics.median(singly),
                "ratio": statistics.median(ratios),
            }
        )
        print(rows[-1], flush=True)
    return rows


def linear(reranker: Reranker, many: int, few: int, rounds: int) -> dict[str, object]:
    """Ranking many pages at once against ranking them few at a time."""
    pages = sample_pages(many)
    question = sample_questions(1)[0]
    ratios = []
    for _ in range(rounds):
        whole = timed(lambda: rank_anew(reranker, question, pages))
        parts = sum(
            timed(lambda start=start: rank_anew(reranker, question, pages[start : start + few]))  # type: ignore[misc]
            for start in range(0, many, few)
        )
        ratios.append(whole / parts)
    found = {"many": many, "few": few, "whole_against_parts": statistics.median(ratios), "ratios": ratios}
    print(found, flush=True)
    return found


def plot(pages: list[dict[str, float]], questions: list[dict[str, float]], path: Path) -> None:
    """Two panels: seconds against pages, and seconds per question against questions asked together."""
    with figure(path, 10, 4) as drawn:
        left, right = drawn.subplots(1, 2)
        for name, label in (
            ("plain", "two full passes per question (plain)"),
            ("first", "first question"),
            ("further", "each further question"),
        ):
            rows = [row for row in pages if name in row]
            left.plot([row["pages"] for row in rows], [row[name] for row in rows], marker="o", label=label)
        left.set(xscale="log", yscale="log", xlabel="pages", ylabel="seconds", title="Cost against pages")
        for name in ("singly", "together"):
            right.plot(
                [row["questions"] for row in questions],
                [row[name] / row["questions"] for row in questions],
                marker="o",
                label=f"asked {name}",
            )
        right.set(xscale="log", xlabel="questions", ylabel="seconds per question", title="Cost against questions")
        right.set_ylim(bottom=0)
        for axes in (left, right):
            axes.legend()
            axes.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model, or random, random-2b or random-8b; the bundled one if left out")
    parser.add_argument("--device")
    parser.add_argument("--dtype", help="bfloat16 or float32")
    parser.add_argument("--pages", type=numbers, default=[5, 10, 20, 50, 100, 200])
    parser.add_argument("--plain-pages", type=int, default=50, help="most pages for the plain procedure")
    parser.add_argument("--questions", type=numbers, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--asked-pages", type=int, default=20, help="pages that the questions are asked of")
    parser.add_argument("--linear", type=numbers, default=[500, 50], help="many,few pages; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    reranker = reranker_to_measure(args.model, device=args.device, dtype=args.dtype)
    rank_anew(reranker, sample_questions(1)[0], sample_pages(2))
    results: dict[str, object] = {}
    results["pages"] = pages = by_pages(reranker, args.pages, args.plain_pages, args.rounds)
    results["questions"] = questions = by_questions(reranker, args.asked_pages, args.questions, args.rounds)
    if len(args.linear) == 2:
        results["linear"] = linear(reranker, *args.linear, args.rounds)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "pages_and_questions.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(pages, questions, args.out / "pages_and_questions.png")


if __name__ == "__main__":
    main()
