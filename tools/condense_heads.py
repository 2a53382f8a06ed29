"""Condense the released per-head scores into the file that the package ships.

    python tools/condense_heads.py RELEASED_FOLDER [OUTPUT]

RELEASED_FOLDER holds one JSON file per model: ``model``, ``n_layers``, ``n_heads`` and ``scores[task][length]``,
a layers x heads matrix. Scores of 0 and above keep the release's five decimals. Those below 0 keep three, which
brings the file under its size limit and changes no head that can be selected.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmrh_retriever import files
from mmrh_retriever.heads import file_formats

SCALE = 100_000
NEGATIVE_STEP = 100  # in units of 1 / SCALE
SIZE_LIMIT = 400_000
SOURCE = "arXiv 2605.27243 (Li et al. 2026, Can Retrieval Heads See Images?) and its released head scores"
NOTE = (
    "Scores above 0 as released, to five decimals; scores below 0 rounded to three. Whole numbers in units of "
    "1/scale. The released files name no licence; these are measured figures, given with their source."
)
DEFAULT_OUTPUT = Path(__file__).parents[1] / "mmrh_retriever" / "data" / "published_heads.json.gz"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Facts from a model's public configuration that the released files lack."""

    model_type: str
    hidden_size: int
    global_every: int = 1
    """One layer in so many attends to the whole context; the others have a sliding window."""


FACTS = {
    "Qwen/Qwen2.5-VL-7B-Instruct": ModelFacts("qwen2_5_vl", 3584),
    "Qwen/Qwen2.5-VL-32B-Instruct": ModelFacts("qwen2_5_vl", 5120),
    "Qwen/Qwen3-VL-8B-Instruct": ModelFacts("qwen3_vl", 4096),
    "Qwen/Qwen3-VL-32B-Instruct": ModelFacts("qwen3_vl", 5120),
    "google/gemma-3-12b-it": ModelFacts("gemma3", 3840, global_every=6),
    "google/gemma-3-27b-it": ModelFacts("gemma3", 5376, global_every=6),
}


def condensed(values: file_formats.Matrix) -> list[list[int]]:
    """Scores as whole numbers, the negative ones in coarser steps."""
    exact: npt.NDArray[np.int64] = np.rint(np.array(values, dtype=np.float64) * SCALE).astype(np.int64)
    coarse = np.rint(exact / NEGATIVE_STEP).astype(np.int64) * NEGATIVE_STEP
    rows: list[list[int]] = np.where(exact < 0, coarse, exact).tolist()
    return rows


def entry_of(path: Path) -> file_formats.PublishedModelEntry:
    """One released file, condensed."""
    content = files.read_json(path, file_formats.ReleasedScoresFile, what="released scores file")
    facts = FACTS[content.model]
    global_layers = range(facts.global_every - 1, content.n_layers, facts.global_every)
    return file_formats.PublishedModelEntry(
        model=content.model,
        model_type=facts.model_type,
        hidden_size=facts.hidden_size,
        n_layers=content.n_layers,
        n_heads=content.n_heads,
        selectable_layers=None if facts.global_every == 1 else tuple(global_layers),
        scores={
            task: {length: condensed(values) for length, values in lengths.items()}
            for task, lengths in content.scores.items()
        },
    )


def main() -> int:
    """Condense a folder; the exit code is 1 when the result is too large."""
    parser = argparse.ArgumentParser(description="Condense released head scores.")
    parser.add_argument("released", type=Path)
    parser.add_argument("output", type=Path, nargs="?", default=DEFAULT_OUTPUT)
    arguments = parser.parse_args()
    entries = {entry.model: entry for entry in map(entry_of, sorted(arguments.released.glob("*.json")))}
    missing = FACTS.keys() - entries.keys()
    if missing:
        parser.error(f"no scores in {arguments.released} for {', '.join(sorted(missing))}")
    content = file_formats.PublishedFile(
        format="mmrh-published-heads",
        version=1,
        source=SOURCE,
        note=NOTE,
        scale=SCALE,
        models=[entries[model] for model in FACTS],
    )
    files.write_json(arguments.output, content, indent=None)
    size = arguments.output.stat().st_size
    sys.stdout.write(f"{arguments.output}: {len(entries)} models, {size:,} bytes (limit {SIZE_LIMIT:,})\n")
    return int(size > SIZE_LIMIT)


if __name__ == "__main__":
    sys.exit(main())
