r"""How should the visual tokens under a box become its score? Layout recall of each way, on data in MMDocIR's form.

    python benchmarks/region_aggregation.py --annotations mmdocir/annotations.jsonl \
        --documents mmdocir/documents --out region_aggregation [--crops] [--every 3]

Every document runs once; token scores are kept in ``--out`` (a file a document, so a killed run goes on where it was)
and all aggregations are made of the same scores. ``--crops`` adds the paper's way, each box as an image of its own.
Boxes are those that ``read_pdf(..., layout=True)`` finds, gold boxes those of the annotations. The table goes to
stdout in Markdown. Recall is MMDocIR's: gold area that the best k boxes cover, over the whole gold area.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mmrh_retriever import Reranker
from mmrh_retriever.metrics import Measured, PageBox, bootstrap_interval, layout_measures, paired_bootstrap, summarise
from mmrh_retriever.mmdocir import Document, MMDocIR
from mmrh_retriever.regions import AGGREGATES, DEFAULT_AGGREGATE, box_areas, region_fractions, region_scores
from mmrh_retriever.types import Page, PatchGrid

CUTS = (1, 5, 10)
RANDOM_ORDERS = 20
Stored = dict[str, Any]


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
            row[places[id(scored.region)]] = scored.score
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
        if way == "largest first":
            rows.append(box_areas(boxes))
        elif len(boxes):
            grid = PatchGrid(kept[f"grid_{place}"], 1, 1)
            rows.append(region_scores(kept[f"tokens_{place}"][question], grid, boxes, way))  # type: ignore[arg-type]
    return np.concatenate(rows)


def measured(document: Document, number: int, kept: Stored, scores: np.ndarray) -> Measured:
    """Layout recall of one question under one scoring of the document's boxes."""
    question = document.questions[number]
    sizes = {item.page: item.page_size for item in question.layouts}
    pages = range(sum(name.startswith("boxes_") for name in kept))
    candidates = [
        PageBox(place, tuple(box * (*sizes.get(place, (1, 1)), *sizes.get(place, (1, 1)))))
        for place in pages
        for box in kept[f"boxes_{place}"]
    ]
    order = np.argsort(-scores, kind="stable")[: max(CUTS)]
    gold = [PageBox(item.page, item.box) for item in question.layouts]
    values = layout_measures([candidates[place] for place in order], gold, CUTS)
    return Measured(document.name, document.domain, values, question.types)


def chance(document: Document, number: int, kept: Stored) -> Measured:
    """The mean over random orders."""
    count = sum(len(kept[name]) for name in kept if name.startswith("boxes_"))
    rng = np.random.default_rng(number)
    runs = [measured(document, number, kept, rng.random(count)) for _ in range(RANDOM_ORDERS)]
    mean = {name: float(np.mean([run.values[name] for run in runs])) for name in runs[0].values}
    return Measured(document.name, document.domain, mean, runs[0].types)


def table(results: dict[str, list[Measured]]) -> str:
    """Markdown: layout recall in %, with a 95 % interval (documents drawn) and the difference from the default."""
    lines = [
        "| box score | R@1 | R@5 | R@10 | macro R@1 | R@5 | R@10 | R@5 less the default's (p) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    names = [f"recall@{k}" for k in CUTS]
    base = results[DEFAULT_AGGREGATE]
    documents = [item.document for item in base]
    for way, items in results.items():
        summary = summarise(items)
        cells = []
        for name in names:
            interval = bootstrap_interval([item.values[name] for item in items], clusters=documents)
            cells.append(f"{100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]")
        cells += [f"{100 * summary.macro[name]:.1f}" for name in names]
        pairs = ([item.values[names[1]] for item in run] for run in (items, base))
        against = paired_bootstrap(*pairs, clusters=documents)
        cells.append("" if way == DEFAULT_AGGREGATE else f"{100 * against.difference:+.1f} ({against.p:.3f})")
        label = f"**{way}** (default)" if way == DEFAULT_AGGREGATE else way
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--documents", type=Path, required=True, help="folder of the PDFs")
    parser.add_argument("--out", type=Path, required=True, help="folder for token scores; a later run goes on there")
    parser.add_argument("--model", help="hub id or folder; the bundled model by default")
    parser.add_argument("--heads", default="published")
    parser.add_argument("--every", type=int, default=1, help="take each n-th document only")
    parser.add_argument("--crops", action="store_true", help="also rank each box as an image of its own")
    args = parser.parse_args()
    dataset = MMDocIR.from_pdfs(args.annotations, args.documents)
    reranker = Reranker.from_pretrained(args.model, heads=args.heads)
    results: dict[str, list[Measured]] = {}
    seconds = {"page": 0.0, "crops": 0.0}
    counts = {"documents": 0, "pages": 0, "boxes": 0, "questions": 0}
    for document in tqdm(dataset.documents[:: args.every], desc="documents"):
        pages = dataset.pages(document, regions=True)
        file = args.out / f"{document.line:04d}"
        kept = stored(file.with_suffix(".npz"), lambda d=document, p=pages: page_pass(reranker, d, p))
        seconds["page"] += float(kept["seconds"])
        span = range(len(pages))
        counts["documents"] += 1
        counts["pages"] += len(pages)
        counts["boxes"] += sum(len(kept[f"boxes_{place}"]) for place in span)
        crops: Stored | None = None
        if args.crops:
            crops = stored(Path(f"{file}-crops.npz"), lambda d=document, p=pages: crop_pass(reranker, d, p))
            seconds["crops"] += float(crops["seconds"])
        for number, question in enumerate(document.questions):
            if not question.layouts:
                continue
            counts["questions"] += 1
            for way in (*AGGREGATES, "largest first"):
                scores = scores_of(kept, way, number, span)
                results.setdefault(way, []).append(measured(document, number, kept, scores))
            if crops is not None:
                results.setdefault("crops", []).append(measured(document, number, kept, crops["crops"][number]))
            results.setdefault("random", []).append(chance(document, number, kept))
    print(table(results))
    print()
    print(", ".join(f"{count} {name}" for name, count in counts.items()), f"; {len(reranker.heads)} heads", sep="")
    print(f"processor seconds: page pass {seconds['page']:.0f}" + (f", crops {seconds['crops']:.0f}" * args.crops))
    return 0


if __name__ == "__main__":
    sys.exit(main())
