"""``mmrh detect``: score every head of a model on needle probes. Results on stdout, everything else on stderr."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from mmrh_retriever.cli.probe_options import ProbeOptions, load, parsed_lengths, parsed_tasks, rounded
from mmrh_retriever.errors import HeadSetError
from mmrh_retriever.heads.sets import HeadSet
from mmrh_retriever.research.detection import Detection, detect
from mmrh_retriever.research.head_analysis import sparsity

_SHOWN = 5


def detect_command(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a model, or 'bundled'.")],
    out: Annotated[Path, typer.Option(help="The scores file to write, .json or .json.gz.")],
    task: Annotated[
        list[str] | None, typer.Option(help="text, image, rendered_text, identical_image; repeatable. All if left out.")
    ] = None,
    lengths: Annotated[str, typer.Option(help="Context lengths in tokens, such as 8192,16384.")] = "8192",
    haystack: Annotated[
        list[Path] | None, typer.Option(help="PDF, text and image files or folders to hide needles in; repeatable.")
    ] = None,
    mm_niah: Annotated[Path | None, typer.Option(help="MMLongBench's NIAH folder, instead of built probes.")] = None,
    mm_niah_images: Annotated[Path | None, typer.Option(help="Where its image paths start.")] = None,
    examples: Annotated[int, typer.Option(min=1, help="Questions a task and length.")] = 20,
    depths: Annotated[int, typer.Option(min=1, help="Needle depths a question.")] = 6,
    image_share: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Share of pictures in the haystack; 0.1 if left out.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the probes.")] = 0,
    cloze: Annotated[
        bool, typer.Option("--cloze", help="Ask with the needle's beginning, for models that complete.")
    ] = (False),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was cut off.")] = False,
    device: Annotated[str | None, typer.Option(help="cuda, mps, cpu ...; the best there is if left out.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16, float32.")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Pixels a picture, for models of any size.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a task and length on stdout.")] = False,
) -> None:
    """Find a model's retrieval heads: null-calibrated attention from questions to needles, a score a head."""
    options = ProbeOptions(
        tasks=parsed_tasks(task),
        lengths=parsed_lengths(lengths),
        haystack=tuple(haystack or ()),
        mm_niah=mm_niah,
        mm_niah_images=mm_niah_images,
        examples=examples,
        depths=depths,
        image_share=image_share,
        seed=seed,
        cloze=cloze,
    )
    if out.suffix not in (".json", ".gz"):
        raise typer.BadParameter(f"expected a name ending in .json or .json.gz, got {out.name!r}", param_hint="--out")
    loaded = load(model, device=device, dtype=dtype, max_pixels=max_pixels)
    run = detect(
        loaded.model,
        loaded.processors,
        options.probes(loaded),
        model_id=loaded.name,
        journal=journal_of(out),
        resume=resume,
        settings=options.settings(loaded),
        progress=True,
        total=options.total(loaded),
    )
    table = run.table
    table.save(out)
    entries = [condition_entry(run, *condition) for condition in table]
    if as_json:
        for entry in entries:
            typer.echo(json.dumps(entry))
        return
    Console().print(_table(run, entries))
    Console(stderr=True).print(f"Scores are in {out}, each probe's in {journal_of(out)}. To see more: mmrh heads {out}")


def journal_of(out: Path) -> Path:
    """Where a detection run keeps each probe's scores: beside the scores file."""
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
    table = Table(title=f"Heads of {run.model_id}")
    for name in (
        "task",
        "tokens",
        "probes",
        "heads for half the mass",
        "recall@1 best / mean",
        "stability",
        "best heads",
    ):
        table.add_column(name)
    for entry in entries:
        share, stability = entry["share_of_heads_for_half_the_mass"], entry["stability"]
        table.add_row(
            entry["task"],
            str(entry["context_length"]),
            str(entry["probes"]),
            "-" if share is None else f"{100 * share:.1f} %",
            f"{entry['best_recall_at_1']:.2f} / {entry['mean_recall_at_1']:.2f}",
            "-" if stability is None else f"{stability:.2f}",
            ", ".join(entry["best"]),
        )
    return table
