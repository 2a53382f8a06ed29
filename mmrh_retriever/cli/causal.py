"""``mmrh causal``: mask a model's retrieval heads and see what it can still answer. Results on stdout."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from mmrh_retriever.cli.probe_options import ProbeOptions, load, parsed_lengths, parsed_tasks, rounded
from mmrh_retriever.files import write_atomically, write_json
from mmrh_retriever.model.attention_seam import AblationPhase
from mmrh_retriever.model.loading import resolve_heads
from mmrh_retriever.research.causal import causal_journal, causal_rows, keep_rows, save_rows
from mmrh_retriever.research.causal_tables import causal_table, plot_causal, summarise_causal
from mmrh_retriever.research.probes.long_documents import DOCUMENT_PROMPT, read_long_documents
from mmrh_retriever.research.probes.probe import Probe
from mmrh_retriever.research.probes.prompts import ProbePrompt
from mmrh_retriever.runs.tables import print_tables

logger = logging.getLogger(__name__)


class AnsweringName(str, Enum):
    """How the model answers."""

    auto = "auto"
    generate = "generate"
    choices = "choices"


class PhaseName(str, Enum):
    """When heads are masked."""

    both = "both"
    all = "all"
    decode = "decode"


def causal_command(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a model, or 'bundled'.")],
    heads: Annotated[str, typer.Option(help="The heads to mask: a head set or scores file, or 'published'.")],
    out: Annotated[Path, typer.Option(help="Folder for answers, rows.jsonl, summary.json, tables.md and causal.png.")],
    random_seeds: Annotated[int, typer.Option(min=1, help="Draws of each random control.")] = 5,
    task: Annotated[list[str] | None, typer.Option(help="As for detect; repeatable.")] = None,
    lengths: Annotated[str, typer.Option(help="Context lengths in tokens, such as 8192,16384.")] = "8192",
    haystack: Annotated[list[Path] | None, typer.Option(help="As for detect.")] = None,
    mm_niah: Annotated[Path | None, typer.Option(help="MMLongBench's NIAH folder, instead of built probes.")] = None,
    mm_niah_images: Annotated[Path | None, typer.Option(help="Where its image paths start.")] = None,
    examples: Annotated[int, typer.Option(min=1, help="Questions a task and length.")] = 20,
    depths: Annotated[int, typer.Option(min=1, help="Needle depths a question.")] = 6,
    image_share: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="As for detect.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the probes; detect with another.")] = 1,
    cloze: Annotated[
        bool, typer.Option("--cloze", help="Ask with the needle's beginning, for models that complete.")
    ] = (False),
    questions: Annotated[
        Path | None, typer.Option(help="JSON lines of document, question, answer: ask about documents instead.")
    ] = None,
    documents: Annotated[Path | None, typer.Option(help="Folder of the PDFs that --questions names.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first N of --questions.")] = None,
    max_pages: Annotated[int | None, typer.Option(min=1, help="The first N pages of each document.")] = None,
    answering: Annotated[
        AnsweringName, typer.Option(help="Freely, by the likelihood of each choice, or as each probe allows.")
    ] = AnsweringName.auto,
    phase: Annotated[PhaseName, typer.Option(help="Mask while reading and answering, or answering alone.")] = (
        PhaseName.both
    ),
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest free answer.")] = 32,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was cut off.")] = False,
    device: Annotated[str | None, typer.Option(help="cuda, mps, cpu ...; the best there is if left out.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16, float32.")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Pixels a picture, for models of any size.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a task and masking on stdout.")] = False,
) -> None:
    """Accuracy with no heads masked, the selected ones masked, and as many random ones."""
    if (questions is None) != (documents is None):
        raise typer.BadParameter("--questions and --documents go together")
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
    phases: tuple[AblationPhase, ...] = ("all", "decode") if phase is PhaseName.both else (phase.value,)
    loaded = load(model, device=device, dtype=dtype, max_pixels=max_pixels)
    probes: Iterator[Probe] = options.probes(loaded)
    prompt: ProbePrompt | None = None
    total = options.total(loaded)
    if questions is not None and documents is not None:
        probes = read_long_documents(questions, documents, loaded.count, limit=limit, max_pages=max_pages)
        prompt, total = DOCUMENT_PROMPT, limit
    selected = resolve_heads(heads, loaded.backbone)
    settings: dict[str, Any] = {
        "model": loaded.name,
        "heads": [str(head) for head in selected],
        "probes": options.settings(loaded),
        "questions": None if questions is None else {"file": questions.name, "limit": limit, "max_pages": max_pages},
        "answering": answering.value,
        "phases": list(phases),
        "random_seeds": random_seeds,
        "max_new_tokens": max_new_tokens,
    }
    with causal_journal(out, settings, resume=resume) as journal:
        rows = causal_rows(
            loaded.model,
            loaded.processors,
            probes,
            selected,
            answering=None if answering is AnsweringName.auto else answering.value,
            random_seeds=random_seeds,
            phases=phases,
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            finished=journal.done,
            progress=True,
            total=total,
        )
        summary = summarise_causal(save_rows(keep_rows(rows, journal), out / "rows.jsonl"))
    about = {"model": loaded.name, "heads": heads, "probes_from": options.settings(loaded)}
    write_json(out / "summary.json", {**about, **summary})
    table = causal_table(summary)
    write_atomically(out / "tables.md", table.markdown().encode())
    try:
        plot_causal(summary, out / "causal.png")
    except ImportError as error:
        logger.warning("No plot: %s", error)
    if as_json:
        for entry in summary["overall"]:
            typer.echo(json.dumps(rounded(entry)))
        return
    print_tables([table])
