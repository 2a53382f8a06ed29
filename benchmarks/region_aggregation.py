r"""How do the visual tokens under a box become its score? Layout recall of each way, on data in MMDocIR's form.

    python benchmarks/region_aggregation.py --annotations mmdocir/annotations.jsonl \
        --documents mmdocir/documents --out region_aggregation --crops-every 6

Every document runs once. Its token scores are kept in ``--out``, one file per document, so that a killed run goes on
where it was; all aggregations are made of the same scores. ``--crops-every N`` adds the paper's way, each box as an
image of its own, on every N-th document, and a second table of all ways on these. Boxes are those that
``read_pdf(..., layout=True)`` finds; gold boxes are those of the annotations. The tables go to stdout in Markdown.
Recall is MMDocIR's: the gold area that the best k boxes cover, over the whole gold area.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mmrh_retriever import Reranker
from mmrh_retriever.evaluation.metrics import Measured, PageBox, layout_recall, summarise
from mmrh_retriever.evaluation.mmdocir.dataset import Document, MMDocIR
from mmrh_retriever.model.fingerprints import encoding_fingerprint
from mmrh_retriever.pdf.boxes import box_areas
from mmrh_retriever.ranking.region_scores import AGGREGATES, DEFAULT_AGGREGATE, region_fractions, region_scores
from mmrh_retriever.runs.bootstrap import bootstrap_interval, paired_bootstrap
from mmrh_retriever.runs.tables import Cell, Table
from mmrh_retriever.types import Page, PatchGrid

CUTS = (1, 5, 10)
RANDOM_ORDERS = 20
LARGEST, CROPS, CHANCE = "largest first", "each box as an image", "random"
WAYS = (*AGGREGATES, LARGEST)
Stored = dict[str, Any]
Results = dict[str, list[Measured]]


def page_pass(reranker: Reranker, document: Document, pages: list[Page]) -> Stored:
    """Token scores of every page for every question, ``(questions, tokens)`` per page, with boxes and grids."""
    started = time.process_time()
    rankings = reranker.rank_many([question.text for question in document.questions], pages, with_tokens=True)
    found: Stored = {"seconds": time.process_time() - started}
    for index, page in enumerate(pages):
        found[f"boxes_{index}"] = region_fractions(page)
        of_page = [next(scored for scored in ranking if scored.position == index) for ranking in rankings]
        found[f"scores_{index}"] = np.array([scored.score for scored in of_page])
        if of_page[0].token_scores is not None and of_page[0].grid is not None:
            found[f"tokens_{index}"] = np.stack([scored.token_scores for scored in of_page])
            found[f"grid_{index}"] = of_page[0].grid.boxes
    return found


def crop_pass(reranker: Reranker, document: Document, pages: list[Page]) -> Stored:
    """Scores ``(questions, regions)`` of every box as an image of its own."""
    columns = {id(region): number for number, region in enumerate(box for page in pages for box in page.regions)}
    started = time.process_time()
    rankings = reranker.rank_regions_many([question.text for question in document.questions], pages, method="crops")
    scores = np.full((len(rankings), len(columns)), np.nan)
    for row, ranking in zip(scores, rankings, strict=True):
        for scored in ranking:
            row[columns[id(scored.region)]] = scored.score  # sorts last if it stays NaN
    return {"seconds": time.process_time() - started, "crops": scores}


def stored(path: Path, make: Callable[[], Stored]) -> Stored:
    """What is in the file. It is made first where it is missing."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez_compressed(partial, **make())
        partial.replace(path)
    with np.load(path) as arrays:
        return dict(arrays)


def scores_of(kept: Stored, way: str, question: int, pages: range) -> np.ndarray:
    """Scores of all of a document's boxes, page by page."""
    rows = []
    for index in pages:
        boxes = kept[f"boxes_{index}"]
        if way == LARGEST:
            rows.append(box_areas(boxes))
        elif len(boxes):
            grid = PatchGrid(kept[f"grid_{index}"], 1, 1)
            rows.append(region_scores(kept[f"tokens_{index}"][question], grid, boxes, way))  # type: ignore[arg-type]
    return np.concatenate(rows)


def candidates(document: Document, number: int, kept: Stored, pages: range) -> list[PageBox]:
    """All boxes of a document, in the units of the question's gold boxes."""
    sizes = {item.page: item.page_size for item in document.questions[number].layouts}
    return [
        PageBox(index, tuple(box * (*sizes.get(index, (1, 1)), *sizes.get(index, (1, 1)))))
        for index in pages
        for box in kept[f"boxes_{index}"]
    ]


def measured(document: Document, number: int, boxes: list[PageBox], *orders: np.ndarray) -> Measured:
    """Layout recall, cut off at 1, of one question under a scoring of the boxes; the mean over several."""
    question = document.questions[number]
    gold = [PageBox(item.page, item.box) for item in question.layouts]
    runs = []
    for scores in orders:
        best = np.argsort(-scores, kind="stable")[: max(CUTS)]
        shown = [boxes[number] for number in best]
        runs.append({f"recall@{k}": min(1.0, layout_recall(shown, gold, k)) for k in CUTS})
    values = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
    return Measured(document.name, document.domain, values, question.types)


def table(results: Results) -> str:
    """Markdown: layout recall in %, with a 95 % interval (documents drawn) and the difference from the default."""
    names = [f"recall@{k}" for k in CUTS]
    columns = [f"{average} R@{k}" for average in ("micro", "macro") for k in CUTS]
    base = results[DEFAULT_AGGREGATE]
    documents = [item.document for item in base]
    summaries = {way: summarise(items) for way, items in results.items()}
    best = {
        (average, name): max(getattr(summary, average)[name] for summary in summaries.values())
        for average in ("micro", "macro")
        for name in names
    }
    rows: list[list[str | Cell]] = []
    for way, items in results.items():
        label = f"`{way}` (default)" if way == DEFAULT_AGGREGATE else f"`{way}`" if way in AGGREGATES else way
        cells: list[str | Cell] = [label]
        for (average, name), highest in best.items():
            text = f"{100 * getattr(summaries[way], average)[name]:.1f}"
            is_best = text == f"{100 * highest:.1f}"
            if average == "micro":
                interval = bootstrap_interval([item.values[name] for item in items], clusters=documents)
                text += f" ({100 * interval.low:.1f}–{100 * interval.high:.1f})"
            cells.append(Cell(text, best=is_best))
        pairs = ([item.values[names[1]] for item in run] for run in (items, base))
        apart = paired_bootstrap(*pairs, clusters=documents)
        cells.append("" if way == DEFAULT_AGGREGATE else f"{100 * apart.difference:+.1f}, p = {apart.p:.2g}")
        rows.append(cells)
    return Table.of("", ["box score", *columns, f"R@{CUTS[1]} less the default's"], rows).markdown()


def check_settings(out: Path, dataset: MMDocIR, reranker: Reranker) -> None:
    """Refuse token scores of another model, other heads or other data."""
    settings = {
        "data": dataset.fingerprint,
        "encoding": encoding_fingerprint(reranker.prompter, independent=reranker.independent),
        "ranking": [reranker.token_budget, reranker.settings.calibrate, reranker.settings.final_round],
        "heads": [str(head) for head in reranker.heads],
    }
    path = out / "settings.json"
    if path.is_file() and json.loads(path.read_text()) != settings:
        sys.exit(f"{out} holds token scores of another run (model, heads, data or versions). Choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--documents", type=Path, required=True, help="folder of the PDFs")
    parser.add_argument("--out", type=Path, required=True, help="folder for token scores; a later run goes on in it")
    parser.add_argument("--model", help="hub id or folder; the bundled model by default")
    parser.add_argument("--heads", default="published")
    parser.add_argument("--every", type=int, default=1, help="take each n-th document only")
    parser.add_argument("--limit", type=int, help="take only the first of these, so many")
    parser.add_argument(
        "--crops-every", type=int, default=0, help="rank each box as an image of its own too, on each n-th of these"
    )
    args = parser.parse_args()
    dataset = MMDocIR.from_pdfs(args.annotations, args.documents)
    reranker = Reranker.from_pretrained(args.model, heads=args.heads)
    check_settings(args.out, dataset, reranker)
    results: Results = {way: [] for way in (*AGGREGATES, LARGEST, CHANCE)}
    cropped: Results = {way: [] for way in (*AGGREGATES, CROPS, CHANCE)}
    counts = dict.fromkeys(("documents", "pages", "boxes", "questions", "documents with crops"), 0)
    seconds = {"page": 0.0, "crops": 0.0, "page, documents with crops": 0.0}
    for count, document in enumerate(tqdm(dataset.documents[:: args.every][: args.limit], desc="documents")):
        pages = dataset.pages(document, regions=True)
        file = args.out / f"{document.line:04d}"
        kept = stored(file.with_suffix(".npz"), lambda d=document, p=pages: page_pass(reranker, d, p))
        with_crops = args.crops_every > 0 and count % args.crops_every == 0
        crops: Stored = {}
        if with_crops:
            crops = stored(Path(f"{file}-crops.npz"), lambda d=document, p=pages: crop_pass(reranker, d, p))
            seconds["crops"] += float(crops["seconds"])
            seconds["page, documents with crops"] += float(kept["seconds"])
        seconds["page"] += float(kept["seconds"])
        span = range(len(pages))
        added = (1, len(pages), sum(len(kept[f"boxes_{index}"]) for index in span), 0, int(with_crops))
        counts = {name: total + more for (name, total), more in zip(counts.items(), added, strict=True)}
        for number, question in enumerate(document.questions):
            if not question.layouts:
                continue
            counts["questions"] += 1
            boxes = candidates(document, number, kept, span)
            rng = np.random.default_rng([document.line, number])
            found = {way: measured(document, number, boxes, scores_of(kept, way, number, span)) for way in WAYS}
            orders = [rng.random(len(boxes)) for _ in range(RANDOM_ORDERS)]
            found[CHANCE] = measured(document, number, boxes, *orders)
            if with_crops:
                found[CROPS] = measured(document, number, boxes, crops["crops"][number])
            for tables in [results, cropped] if with_crops else [results]:
                for way, items in tables.items():
                    items.append(found[way])
    measured_on = ", ".join(f"{total} {name}" for name, total in counts.items() if total)
    print(f"Layout level: {measured_on}; {len(reranker.heads)} heads; in %\n")
    print(table(results), end="")
    if cropped[CROPS]:
        print(f"\nThe {counts['documents with crops']} documents whose boxes were also cut out and run as images:\n")
        print(table(cropped), end="")
    print("\nProcessor seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items() if value))
    return 0


if __name__ == "__main__":
    sys.exit(main())
