"""What joint and independent pages, windows, a final round, the order of pages and a depth budget do to recall.

    python benchmarks/windows_and_order.py --out out/windows.json                     # the bundled model
    python benchmarks/windows_and_order.py --model FOLDER --heads heads.json --pages 20,100 --out out/windows.json

Pages and questions are made from a seed, without a network. A PDF's pages hold a few short facts each, every fact once;
each question asks for a single fact, so that one page is the answer. Five tables are printed:

* encoding: recall with pages read together and each alone, at the smallest number of pages;
* windows: recall at each number of pages, raw scores across windows against a final round of the best;
* positions: recall by the position in the list of the page asked for (the list is turned round step by step);
* order: recall, and how alike scores stay (rank correlation), with the list shuffled and reversed;
* depth: recall and seconds with no heads beyond each layer that holds some.

Intervals are 95 % of bootstrap samples over the questions.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pymupdf

from mmrh_retriever import EncodedPages, Page, Reranker, RerankSettings, ScoredPage, read_pdf
from mmrh_retriever.runs.bootstrap import bootstrap_interval
from mmrh_retriever.runs.tables import Table

TABLES = ("encoding", "windows", "positions", "order", "depth")
ADJECTIVES = "old new red grey tall small north south upper lower royal iron stone wooden public".split()  # noqa: SIM905
THINGS = "bridge harbour station library mill tower museum market school theatre garden hospital".split()  # noqa: SIM905
TOWNS = [
    "Ashby", "Barton", "Corwen", "Dalton", "Elgin", "Farley", "Grafton", "Hadley",
    "Irvine", "Jarrow", "Kelso", "Linton", "Malton", "Norham", "Oakham", "Penrith",
    "Quorn", "Ripley", "Selby", "Tenby", "Upton", "Verwood", "Whitby", "Yarm",
]  # fmt: skip
FACTS = ("was opened in {}", "cost {} pounds", "is {} metres long", "has {} visitors a week", "employs {} people")
ASKED = (
    "When was the {} opened?",
    "How much did the {} cost?",
    "How long is the {}?",
    "How many visitors does the {} have?",
    "How many people does the {} employ?",
)


@dataclass(frozen=True)
class Collection:
    """Pages and, for each question, the index of the page that answers it."""

    pages: list[Page]
    questions: list[str]
    gold: list[int]


def collection(pages: int, questions: int, seed: int, max_pixels: int, facts: int = 4) -> Collection:
    """A PDF of facts, read as any other, and questions for facts of different pages as far as there are enough."""
    rng = np.random.default_rng(seed)
    names = [f"{adjective} {thing} of {town}" for adjective in ADJECTIVES for thing in THINGS for town in TOWNS]
    picked = rng.permutation(len(names))[: pages * facts]
    document = pymupdf.open()
    asked: list[list[str]] = []
    for number in range(pages):
        page = document.new_page(width=360, height=180)
        own = []
        for line, name in enumerate(names[index] for index in picked[number * facts : (number + 1) * facts]):
            kind = int(rng.integers(len(FACTS)))
            fact = FACTS[kind].format(int(rng.integers(10, 2000)))
            page.insert_text((16, 36 + 36 * line), f"The {name} {fact}.", fontsize=12)
            own.append(ASKED[kind].format(name))
        asked.append(own)
    gold = [int(index) for index in rng.permutation(pages)]
    gold = (gold * (questions // pages + 1))[:questions]
    chosen = [asked[index][int(rng.integers(facts))] for index in gold]
    return Collection(read_pdf(document.tobytes(), max_pixels=max_pixels), chosen, gold)


class Maker:
    """Rerankers on one loaded model, which share what the vision tower gave."""

    def __init__(self, first: Reranker) -> None:
        self.first = first

    def __call__(self, *, independent: bool, final_round: int = 0) -> Reranker:
        """One that reads pages together or each alone."""
        other = self.first.with_heads(self.first.heads)
        other.settings = RerankSettings.of(other.settings, {"independent": independent, "final_round": final_round})
        return other


def ranks(encoded: EncodedPages, questions: Sequence[str], gold: Sequence[int]) -> np.ndarray:
    """``(questions,)`` the rank of the page asked for."""
    return gold_ranks(encoded.rank_many(list(questions)), gold)


def gold_ranks(rankings: Sequence[Sequence[ScoredPage]], gold: Sequence[int]) -> np.ndarray:
    return np.array(
        [
            next(scored.rank for scored in ranking if scored.position == index)
            for ranking, index in zip(rankings, gold, strict=True)
        ]
    )


def measures(found: np.ndarray) -> dict[str, object]:
    """Recall at 1 and 5 with the interval of the first, and the mean reciprocal rank, of ``(questions,)`` ranks."""
    interval = bootstrap_interval(found == 1)
    return {
        "questions": len(found),
        "recall@1": interval.mean,
        "interval": [interval.low, interval.high],
        "recall@5": float((found <= 5).mean()),
        "mrr": float((1 / found).mean()),
    }


def show(title: str, rows: list[dict[str, object]]) -> None:
    cells = [[_cell(value) for value in row.values()] for row in rows]
    print("\n" + Table.of(title, list(rows[0]), cells).markdown(), end="", flush=True)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list):
        return " to ".join(f"{edge:.3f}" for edge in value)
    return str(value)


def encoding(make: Maker, data: Collection) -> list[dict[str, object]]:
    rows = []
    for independent in (False, True):
        encoded = make(independent=independent).encode(data.pages)
        found = ranks(encoded, data.questions, data.gold)
        rows.append({"pages": len(data.pages), "encoding": "alone" if independent else "together", **measures(found)})
    return rows


def windows(make: Maker, data: Collection, size: int, independent: bool) -> list[dict[str, object]]:
    rows = []
    for final in (0, size):
        encoded = make(independent=independent, final_round=final).encode(data.pages)
        start = time.perf_counter()
        found = ranks(encoded, data.questions, data.gold)
        rows.append(
            {
                "pages": len(data.pages),
                "encoding": "alone" if independent else "together",
                "windows": len(encoded._windows),
                "scores": f"final round of {size}" if final else "raw",
                **measures(found),
                "seconds per question": (time.perf_counter() - start) / len(found),
            }
        )
    return rows


def positions(make: Maker, data: Collection, step: int, independent: bool) -> list[dict[str, object]]:
    """The list turned round by every ``step`` pages: each question's page comes to stand at every such position."""
    count = len(data.pages)
    reranker = make(independent=independent)
    at: dict[int, list[int]] = {}
    for shift in range(0, count, step):
        turned = [data.pages[(index + shift) % count] for index in range(count)]
        gold = [(index - shift) % count for index in data.gold]
        for index, rank in zip(gold, ranks(reranker.encode(turned), data.questions, gold), strict=True):
            at.setdefault(index, []).append(int(rank))
    return [
        {"position": index + 1, "encoding": "alone" if independent else "together", **measures(np.array(at[index]))}
        for index in sorted(at)
    ]


def order(make: Maker, data: Collection, shuffles: int, independent: bool) -> list[dict[str, object]]:
    count = len(data.pages)
    reranker = make(independent=independent)
    rng = np.random.default_rng(1)
    orders = {"as it is": np.arange(count), "reversed": np.arange(count)[::-1]}
    orders |= {f"shuffled {number + 1}": rng.permutation(count) for number in range(shuffles)}
    rows = []
    first: np.ndarray | None = None
    for name, order in orders.items():
        position_of = np.argsort(order)
        rankings = reranker.encode([data.pages[index] for index in order]).rank_many(data.questions)
        found = gold_ranks(rankings, [int(position_of[index]) for index in data.gold])
        own = np.array([[0] * count for _ in rankings])  # (questions, pages) each page's rank
        for row, ranking in enumerate(rankings):
            for scored in ranking:
                own[row, order[scored.position]] = scored.rank
        first = own if first is None else first
        alike = np.mean([np.corrcoef(one, other)[0, 1] for one, other in zip(first, own, strict=True)])
        rows.append(
            {
                "order": name,
                "encoding": "alone" if independent else "together",
                **measures(found),
                "rank correlation": float(alike),
            }
        )
    return rows


def depth(make: Maker, data: Collection, independent: bool) -> list[dict[str, object]]:
    whole = make(independent=independent)
    rows = []
    for layer in sorted({head.layer for head in whole.heads}):
        reranker = whole.with_heads(whole.heads.up_to_layer(layer))
        reranker.vision.clear()
        start = time.perf_counter()
        encoded = reranker.encode(data.pages)
        seconds = time.perf_counter() - start
        asked = time.perf_counter()
        found = ranks(encoded, data.questions, data.gold)
        rows.append(
            {
                "max_layer": layer,
                "heads": len(reranker.heads),
                **measures(found),
                "seconds to encode": seconds,
                "seconds per question": (time.perf_counter() - asked) / len(found),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder or hub id; the bundled model if left out")
    parser.add_argument("--heads", default="published")
    parser.add_argument("--pages", default="20,100,400", help="numbers of pages; the smallest serves all tables")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--token-budget", type=int, help="longest window in tokens")
    parser.add_argument("--final", type=int, default=10, help="pages of a final round")
    parser.add_argument("--step", type=int, default=1, help="pages by which the list is turned round at a time")
    parser.add_argument("--shuffles", type=int, default=3)
    parser.add_argument("--max-pixels", type=int, default=131_072, help="pixels of a page")
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    counts = sorted(int(part) for part in args.pages.split(","))
    make = Maker(
        Reranker.from_pretrained(args.model, heads=args.heads, token_budget=args.token_budget, vision_memory=1 << 31)
    )
    data = [collection(count, args.questions, args.seed + count, args.max_pixels) for count in counts]
    few, wanted = data[0], args.tables.split(",")
    results: dict[str, list[dict[str, object]]] = {}
    for table in wanted:
        if table == "encoding":
            rows = encoding(make, few)
        elif table == "windows":
            rows = [row for each in data for way in (False, True) for row in windows(make, each, args.final, way)]
        elif table == "positions":
            rows = [row for way in (False, True) for row in positions(make, few, args.step, way)]
        elif table == "order":
            rows = [row for way in (False, True) for row in order(make, few, args.shuffles, way)]
        elif table == "depth":
            rows = depth(make, few, make.first.independent)
        else:
            parser.error(f"there is no table {table!r}: {', '.join(TABLES)}")
        results[table] = rows
        show(table, rows)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"arguments": {**vars(args), "out": str(args.out)}, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
