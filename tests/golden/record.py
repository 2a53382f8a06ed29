"""What the package computed before its code was moved: scores, ranks, regions and detection scores.

    python tests/golden/record.py            # compute anew and compare with the files beside this one
    python tests/golden/record.py --write    # write the files (only where results are meant to change)

Every family runs as a tiny model with a fixed seed, the bundled model on the sample report in float32.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from mmrh_retriever import Page, Region, Reranker, read_pdf  # noqa: E402
from mmrh_retriever.research.detection import detect  # noqa: E402
from mmrh_retriever.research.probes import TASKS, ProbeBuilder, page_probes  # noqa: E402
from mmrh_retriever.research.probes.haystacks import Haystack  # noqa: E402
from mmrh_retriever.research.probes.prompts import token_counter  # noqa: E402
from tests.factories import BUILDERS, NEWER, TEXT_ONLY, Tiny, page_image, tiny  # noqa: E402

QUESTIONS = ["How did revenue change?", "Which table shows water use?", "How did revenue grow in the last year?"]
TEXTS = [
    "Revenue grew by nine percent.",
    "The annual report shows emissions.",
    "Staff numbers and water use.",
    "Tables.",
]
BUDGETS = {"one window": 4000, "several windows": None}
LENGTH = 1100


def golden_pages(name: str) -> list[Page]:
    """Pages of different shapes with regions, or texts for families without a vision tower."""
    if name in TEXT_ONLY:
        return [Page(text=text * 4) for text in TEXTS]
    sizes = [(96, 128), (150, 70), (60, 140), (96, 128), (128, 96)]
    return [
        Page(
            image=page_image(place, size),
            index=place,
            regions=(Region((4, 4, size[0] / 2, size[1] / 2), "text"), Region((10, 20, size[0], size[1]), "table")),
        )
        for place, size in enumerate(sizes)
    ]


def rankings(reranker: Reranker, questions: list[str], pages: list[Page]) -> list[dict[str, Any]]:
    """Order and scores, by page."""
    found = reranker.rank_many(questions, pages, with_tokens=True)
    return [
        {
            "order": [scored.position for scored in ranking],
            "scores": [scored.score for scored in sorted(ranking, key=lambda scored: scored.position)],
            "token_sums": [
                0.0 if scored.token_scores is None else float(np.abs(scored.token_scores).sum(dtype="float64"))
                for scored in sorted(ranking, key=lambda scored: scored.position)
            ],
        }
        for ranking in found
    ]


def family(name: str) -> dict[str, Any]:
    """Everything that one family's tiny model gives."""
    model = tiny(name)
    pages = golden_pages(name)
    processor = (model.tokenizer, model.image_processor)
    whole = Reranker(model.model, processor, heads="all", token_budget=4000)
    longest = max(len(window) for window in whole.encode(pages)._windows)
    found: dict[str, Any] = {"together": rankings(whole, QUESTIONS, pages)}
    budget = 512 + longest // 2  # room for questions, and for about half of the pages
    for label, options in {
        "windows": {"token_budget": budget},
        "windows, raw": {"token_budget": budget, RAW: 0},
        "independent": {"token_budget": 4000, "independent": True},
        "independent windows": {"token_budget": budget, "independent": True},
        "uncalibrated": {"token_budget": 4000, "calibrate": False},
    }.items():
        reranker = Reranker(model.model, processor, heads="all", **options)
        found[label] = rankings(reranker, QUESTIONS, pages)
    encoded = whole.encode(pages)
    found["encoded"] = [[scored.score for scored in encoded.rank(question)] for question in QUESTIONS]
    if name not in TEXT_ONLY:
        for method in ("page", "crops"):
            ranked = whole.rank_regions_many(QUESTIONS[:2], pages, method=method)
            found[f"regions, {method}"] = [
                [[region.page.index, *region.box, region.score] for region in ranking] for ranking in ranked
            ]
        scored = encoded.rank(QUESTIONS[0], top_n=1, with_tokens=True)[0]
        attention = encoded.question_attention(QUESTIONS[0], scored)
        found["question attention"] = attention.scores.sum(axis=1, dtype="float64").tolist()
    found["detection"] = detection(model)
    return found


def detection(model: Tiny) -> dict[str, Any]:
    """Detection scores of one probe a task, and of whole pages."""
    processor = (model.tokenizer, model.image_processor)
    text_only = model.name in TEXT_ONLY
    prompter = Reranker(model.model, processor, heads="all").prompter
    passages = Haystack.generated(1, passages=20, images=0).passages
    images = tuple(Page(image=page_image(number), doc_id="haystack", index=number) for number in range(6))
    haystack = Haystack(passages, () if text_only else images, "golden")
    builder = ProbeBuilder(token_counter(prompter), haystack, image_share=0.0 if text_only else 0.4, seed=0)
    probes = [
        probe
        for task in (("text",) if text_only else TASKS)
        for probe in builder.build(task, LENGTH, examples=1, depths=2)
    ]
    probes += page_probes(golden_pages(model.name), [(QUESTIONS[0], 1), (QUESTIONS[1], [0, 2])], context_length=LENGTH)
    run = detect(model.model, processor, probes)
    return {
        f"{task}": [
            [None if np.isnan(value) else float(value) for value in row] for row in run.table.at(task, LENGTH).values
        ]
        for task, _ in run.conditions
    }


def bundled() -> dict[str, Any]:
    """The bundled model on the sample report, in float32 so that every CPU gives the same."""
    reranker = Reranker.from_pretrained(dtype="float32", device="cpu", hybrid=False)
    asked = json.loads((ROOT / "examples" / "sample_questions.json").read_text(encoding="utf-8"))
    questions = [item["question"] for item in asked][:4]
    pages = read_pdf(ROOT / "examples" / "sample_report.pdf", layout=True, max_pixels=400_000)
    regions = reranker.rank_regions(questions[0], pages, top_n=12)
    return {
        "pages": rankings(reranker, questions, pages),
        "boxes": [
            [[region.kind, *[round(side, 3) for side in region.box]] for region in page.regions] for page in pages
        ],
        "texts": [len(page.text or "") for page in pages],
        "regions": [[region.page.index, *region.box, region.score] for region in regions],
    }


RAW = "final_round"
CASES: dict[str, Callable[[], dict[str, Any]]] = {
    **{name: (lambda name=name: family(name)) for name in BUILDERS if name not in NEWER},
    "bundled": bundled,
}


def largest_difference(found: Any, wanted: Any, where: str = "") -> tuple[float, str]:
    """The largest difference between two numbers in the same place; infinite where anything else differs."""
    if isinstance(wanted, bool) or wanted is None or isinstance(wanted, (str, int)):
        return (0.0 if found == wanted else float("inf")), where
    if isinstance(wanted, float):
        return abs(found - wanted), where
    keys = list(wanted) if isinstance(wanted, dict) else list(range(len(wanted)))
    if (
        type(found) is not type(wanted)
        or len(found) != len(wanted)
        or (isinstance(wanted, dict) and set(found) != set(wanted))
    ):
        return float("inf"), where
    each = [largest_difference(found[key], wanted[key], f"{where}/{key}") for key in keys]
    return max(each, key=lambda pair: pair[0], default=(0.0, where))


def compare(name: str) -> tuple[float, str]:
    """One case anew, against its file."""
    wanted = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    return largest_difference(json.loads(json.dumps(CASES[name]())), wanted, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the files instead of comparing with them")
    parser.add_argument("cases", nargs="*", help="families, or 'bundled'; all if left out")
    given = parser.parse_args()
    for name in given.cases or CASES:
        if given.write:
            (HERE / f"{name}.json").write_text(json.dumps(CASES[name](), indent=None) + "\n", encoding="utf-8")
            print(f"{name}: written")
        else:
            print("{}: largest difference {:.1e} at {}".format(name, *compare(name)))


if __name__ == "__main__":
    main()
