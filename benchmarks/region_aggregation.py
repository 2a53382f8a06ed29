r"""How should the visual tokens under a box become its score? Layout recall of each way, on data in MMDocIR's form.

    python benchmarks/region_aggregation.py --annotations mmdocir/annotations.jsonl \
        --documents mmdocir/documents --out region_aggregation --crops-every 6

Every document runs once; token scores are kept in ``--out`` (a file a document, so a killed run goes on where it was)
and all aggregations are made of the same scores. ``--crops-every N`` adds the paper's way, each box as an image of its
own, on every N-th document, and a second table of all ways on these. Boxes are those that ``read_pdf(...,
layout=True)`` finds, gold boxes those of the annotations. The tables go to stdout in Markdown. Recall is MMDocIR's:
gold area that the best k boxes cover, over the whole gold area.
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
from mmrh_retriever.evaluation.evaluate import settings_of
from mmrh_retriever.evaluation.metrics import Measured, PageBox, layout_recall, summarise
from mmrh_retriever.evaluation.mmdocir.dataset import Document, MMDocIR
from mmrh_retriever.evaluation.rankers import RankerSpec
from mmrh_retriever.ranking.region_scores import (
    AGGREGATES,
    DEFAULT_AGGREGATE,
    box_areas,
    region_fractions,
    region_scores,
)
from mmrh_retriever.runs.bootstrap import bootstrap_interval, paired_bootstrap
from mmrh_retriever.types import Page, PatchGrid

CUTS = (1, 5, 10)
RANDOM_ORDERS = 20
LARGEST, CROPS, CHANCE = "largest first", "each box as an image", "random"
WAYS = (*AGGREGATES, LARGEST)
Stored = dict[str, Any]
Results = dict[str, list[Measured]]


def page_pass(reranker: Reranker, document: Document, pages: list[Page]) -> Stored:
    """Token scores of every page for every question, ``(questions, tokens)`` a page, with boxes and grids."""
    started = time.process_time()
    rankings = reranker.rank_many([question.text for question in document.questions], pages, with_tokens=True)
    found: Stored = {"seconds": time.process_time() - started}
    for place, page in enumerate(pages):
        found[f"boxes_{place}"] = region_fractions(page)
        of_page = [next(scored for scored in ranking if scored.position == place) for ranking in rankings]
        found[f"scores_{place}"] = np.array([scored.score for scored in of_page])
        if of_page[0].token_scores is not None and of_page[0].grid is not None:
            found[f"tokens_{place}"] = np.stack([scored.token_scores for scored in of_page])
            found[f"grid_{place}"] = of_page[0].grid.boxes
    return found


def crop_pass(reranker: Reranker, document: Document, pages: list[Page]) -> Stored:
    """Scores ``(questions, regions)`` of every box as an image of its own."""
    places = {id(region): place for place, region in enumerate(region for page in pages for region in page.regions)}
    started = time.process_time()
    rankings = reranker.rank_regions_many([question.text for question in document.questions], pages, method="crops")
    scores = np.full((len(rankings), len(places)), np.nan)
    for row, ranking in zip(scores, rankings, strict=True):
        for scored in ranking:
            row[places[id(scored.region)]] = scored.score  # sorts last if it stays NaN
    return {"seconds": time.process_time() - started, "crops": scores}


def stored(path: Path, make: Callable[[], Stored]) -> Stored:
    """What is in the file, made first if it isn't there."""
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
    for place in pages:
        boxes = kept[f"boxes_{place}"]
        if way == LARGEST:
            rows.append(box_areas(boxes))
        elif len(boxes):
            grid = PatchGrid(kept[f"grid_{place}"], 1, 1)
            rows.append(region_scores(kept[f"tokens_{place}"][question], grid, boxes, way))  # type: ignore[arg-type]
    return np.concatenate(rows)


def candidates(document: Document, number: int, kept: Stored, pages: range) -> list[PageBox]:
    """All boxes of a document, in the units of the question's gold boxes."""
    sizes = {item.page: item.page_size for item in document.questions[number].layouts}
    return [
        PageBox(place, tuple(box * (*sizes.get(place, (1, 1)), *sizes.get(place, (1, 1)))))
        for place in pages
        for box in kept[f"boxes_{place}"]
    ]


def measured(document: Document, number: int, boxes: list[PageBox], *orders: np.ndarray) -> Measured:
    """Layout recall of one question under a scoring of the boxes; the mean over several."""
    question = document.questions[number]
    gold = [PageBox(item.page, item.box) for item in question.layouts]
    runs = []
    for scores in orders:
        best = np.argsort(-scores, kind="stable")[: max(CUTS)]
        runs.append({f"recall@{k}": layout_recall([boxes[place] for place in best], gold, k) for k in CUTS})
    values = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
    return Measured(document.name, document.domain, values, question.types)


def table(results: dict[str, list[Measured]]) -> str:
    """Markdown: layout recall in %, with a 95 % interval (documents drawn) and the difference from the default."""
    names = [f"recall@{k}" for k in CUTS]
    heads = [f"{average} R@{k}" for average in ("micro", "macro") for k in CUTS]
    lines = [
        f"| box score | {' | '.join(heads)} | R@{CUTS[1]} less the default's |",
        f"|---{'|---:' * (len(heads) + 1)}|",
    ]
    base = results[DEFAULT_AGGREGATE]
    documents = [item.document for item in base]
    summaries = {way: summarise(items) for way, items in results.items()}
    best = {
        (average, name): max(getattr(summary, average)[name] for summary in summaries.values())
        for average in ("micro", "macro")
        for name in names
    }
    for way, items in results.items():
        cells = []
        for average in ("micro", "macro"):
            for name in names:
                value = getattr(summaries[way], average)[name]
                cell = f"{100 * value:.1f}"
                is_best = cell == f"{100 * best[average, name]:.1f}"
                if average == "micro":
                    interval = bootstrap_interval([item.values[name] for item in items], clusters=documents)
                    cell += f" ({100 * interval.low:.1f}–{100 * interval.high:.1f})"
                cells.append(f"**{cell}**" if is_best else cell)
        pairs = ([item.values[names[1]] for item in run] for run in (items, base))
        apart = paired_bootstrap(*pairs, clusters=documents)
        cells.append("" if way == DEFAULT_AGGREGATE else f"{100 * apart.difference:+.1f}, p = {apart.p:.2g}")
        label = f"`{way}` (default)" if way == DEFAULT_AGGREGATE else f"`{way}`" if way in AGGREGATES else way
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def check_settings(out: Path, dataset: MMDocIR, args: argparse.Namespace) -> None:
    """Refuse token scores of another model, other heads or other data."""
    spec = RankerSpec("heads", model=args.model, heads=args.heads)
    settings = settings_of(dataset, {"selected": spec}, level="layout")
    path = out / "settings.json"
    if path.is_file() and json.loads(path.read_text()) != settings:
        sys.exit(f"{out} holds token scores of another run (model, heads, data or versions). Choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--documents", type=Path, required=True, help="folder of the PDFs")
    parser.add_argument("--out", type=Path, required=True, help="folder for token scores; a later run goes on there")
    parser.add_argument("--model", help="hub id or folder; the bundled model by default")
    parser.add_argument("--heads", default="published")
    parser.add_argument("--every", type=int, default=1, help="take each n-th document only")
    parser.add_argument("--limit", type=int, help="the first so many of these")
    parser.add_argument(
        "--crops-every", type=int, default=0, help="rank each box as an image of its own too, on each n-th of these"
    )
    args = parser.parse_args()
    dataset = MMDocIR.from_pdfs(args.annotations, args.documents)
    check_settings(args.out, dataset, args)
    reranker = Reranker.from_pretrained(args.model, heads=args.heads)
    results: Results = {way: [] for way in (*AGGREGATES, LARGEST, CHANCE)}
    cropped: Results = {way: [] for way in (*AGGREGATES, CROPS, CHANCE)}
    counts = dict.fromkeys(("documents", "pages", "boxes", "questions", "documents with crops"), 0)
    seconds = {"page": 0.0, "crops": 0.0, "page, documents with crops": 0.0}
    for turn, document in enumerate(tqdm(dataset.documents[:: args.every][: args.limit], desc="documents")):
        pages = dataset.pages(document, regions=True)
        file = args.out / f"{document.line:04d}"
        kept = stored(file.with_suffix(".npz"), lambda d=document, p=pages: page_pass(reranker, d, p))
        with_crops = args.crops_every > 0 and turn % args.crops_every == 0
        crops: Stored = {}
        if with_crops:
            crops = stored(Path(f"{file}-crops.npz"), lambda d=document, p=pages: crop_pass(reranker, d, p))
            seconds["crops"] += float(crops["seconds"])
            seconds["page, documents with crops"] += float(kept["seconds"])
        seconds["page"] += float(kept["seconds"])
        span = range(len(pages))
        added = (1, len(pages), sum(len(kept[f"boxes_{place}"]) for place in span), 0, int(with_crops))
        counts = {name: count + more for (name, count), more in zip(counts.items(), added, strict=True)}
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
    told = [f"{count} {name}" for name, count in counts.items() if count]
    print(f"Layout level: {', '.join(told)}; {len(reranker.heads)} heads; in %\n")
    print(table(results))
    if cropped[CROPS]:
        print(f"\nThe {counts['documents with crops']} documents whose boxes were also cut out and run as images:\n")
        print(table(cropped))
    print("\nProcessor seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items() if value))
    return 0


if __name__ == "__main__":
    sys.exit(main())
