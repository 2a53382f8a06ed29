"""``mmrh detect``: score every head of a model on needle probes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from mmrh_retriever.cli.options import LoadingOptions, OutputOptions, grouped, rounded, say
from mmrh_retriever.cli.probes import ProbeOptions, load_for_probes
from mmrh_retriever.errors import HeadSetError
from mmrh_retriever.heads.sets import HeadSet
from mmrh_retriever.research.detection import Detection, detect
from mmrh_retriever.research.head_analysis import sparsity
from mmrh_retriever.runs.tables import Table

_SHOWN = 5


@grouped
def detect_command(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a model, or 'bundled'.")],
    out: Annotated[Path, typer.Option(help="The scores file to write, .json or .json.gz.")],
    probes: ProbeOptions,
    loading: LoadingOptions,
    output: OutputOptions,
    preset: Annotated[
        Literal["paper"] | None, typer.Option(help="Which tokens look, and what the null question keeps.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was cut off.")] = False,
) -> None:
    """Find a model's retrieval heads: null-calibrated attention from questions to needles, one score per head."""
    if out.suffix not in (".json", ".gz"):
        raise typer.BadParameter(f"expected a name ending in .json or .json.gz, got {out.name!r}", param_hint="--out")
    loaded = load_for_probes(model, loading)
    run = detect(
        loaded.model,
        loaded.processors,
        probes.probes(loaded),
        preset=preset,
        model_id=loaded.name,
        journal=journal_of(out),
        resume=resume,
        settings=probes.settings(loaded),
        progress=True,
        total=probes.total(loaded),
    )
    table = run.table
    table.save(out)
    entries = [condition_entry(run, *condition) for condition in table]
    output.show(entries, lambda: [_table(run, entries)])
    say(f"Scores are in {out}, each probe's in {journal_of(out)}. To see more: mmrh heads {out}")


def journal_of(out: Path) -> Path:
    """The folder in which a detection run keeps each probe's scores, beside the scores file."""
    return out.with_name(out.name.removesuffix(".gz").removesuffix(".json") + ".probes")


def condition_entry(run: Detection, task: str, context_length: int) -> dict[str, Any]:
    """What ``--json`` says of one task and length; ``None`` where a figure can't be had."""
    scores = run.table.at(task, context_length)
    best = HeadSet.top(scores)
    recall = scores.recall_at_1
    try:
        share: float | None = sparsity(scores.values)
    except HeadSetError:  # no head scores above zero
        share = None
    enough = (scores.n_examples or 0) >= 2
    return rounded(
        {
            "model": run.model_id,
            "task": task,
            "context_length": context_length,
            "probes": scores.n_examples,
            "share_of_heads_for_half_the_mass": share,
            "best_recall_at_1": None if recall is None else float(np.nanmax(recall)),
            "mean_recall_at_1": None if recall is None else float(np.nanmean(recall)),
            "stability": run.stability(task, context_length).mean if enough else None,
            "heads": len(best),
            "best": [str(head) for head in best.heads[:_SHOWN]],
        }
    )


def _table(run: Detection, entries: list[dict[str, Any]]) -> Table:
    columns = [
        *("task", "best heads", "context length", "probes", "share of heads for half the mass"),
        *("best recall@1", "mean recall@1", "stability"),
    ]
    rows = []
    for entry in entries:
        share, stability = entry["share_of_heads_for_half_the_mass"], entry["stability"]
        rows.append(
            [
                entry["task"],
                ", ".join(entry["best"]),
                str(entry["context_length"]),
                str(entry["probes"]),
                "-" if share is None else f"{100 * share:.1f} %",
                f"{entry['best_recall_at_1']:.2f}",
                f"{entry['mean_recall_at_1']:.2f}",
                "-" if stability is None else f"{stability:.2f}",
            ]
        )
    return Table.of(f"Heads of {run.model_id}", columns, rows, text_columns=2)
