"""``make hostile``: inputs by the thousand, and a table by class and outcome. The exit code is 1 if any failed."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

from tests.hostile import documents, files, pdfs, pictures, stores, terminals
from tests.hostile.outcomes import AT_ONCE, Case, Outcome, run_bounded

CLASSES: dict[str, tuple[Case, int]] = {
    "PDF, valid and odd": (pdfs.odd, 8),
    "PDF, damaged": (pdfs.damaged, 14),
    "PDF, written by hand": (pdfs.written, 14),
    "image, valid and odd": (pictures.odd, 8),
    "image, damaged": (pictures.damaged, 12),
    "head file": (files.heads, 6),
    "heads as text": (files.parsed, 4),
    "evaluation's folder": (files.evaluations, 5),
    "annotations": (files.annotations, 5),
    "prompt file": (files.prompts, 2),
    "store": (stores.stores, 4),
    "store, one byte changed": (stores.flipped, 4),
    "adapter metadata": (documents.metadata, 4),
    "path below a folder": (documents.rooted, 3),
    "question": (terminals.questions, 3),
    "text on a terminal": (terminals.printed, 3),
    "page range": (terminals.ranges, 1),
}
"""What is tried, and its share of the inputs in hundredths."""


def main() -> int:
    """Run all classes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="The first seed of each class.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", help="Classes whose name begins like this.")
    given = parser.parse_args()
    started = time.monotonic()
    documents._reranker(), terminals._reranker()  # made once, before workers are forked
    chunks = [
        (name, case, range(start, min(start + AT_ONCE, given.seed + share * given.inputs // 100)))
        for name, (case, share) in CLASSES.items()
        for start in range(given.seed, given.seed + share * given.inputs // 100, AT_ONCE)
        if name.startswith(given.only or "")
    ]
    found: dict[str, list[Outcome]] = {}
    with ThreadPoolExecutor(given.workers) as pool:
        for (name, _, _), outcomes in zip(chunks, pool.map(lambda it: run_bounded(it[1], it[2]), chunks), strict=True):
            found.setdefault(name, []).extend(outcomes)
    print(f"{'class':26}{'inputs':>8}{'right':>8}{'refused':>9}{'failed':>8}")
    for name, outcomes in [*found.items(), ("all", list(chain(*found.values())))]:
        kinds = Counter(outcome.kind for outcome in outcomes)
        print(f"{name:26}{len(outcomes):8}{kinds['right']:8}{kinds['refused']:9}{kinds['failed']:8}")
    print(f"{time.monotonic() - started:.0f} s")
    failed = [(name, outcome) for name, outcomes in found.items() for outcome in outcomes if outcome.kind == "failed"]
    for name, outcome in failed[:40]:
        print(f"\n{name}, seed {outcome.seed}:\n{outcome.why}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
