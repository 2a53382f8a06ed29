"""``mmrh calibrate``: learn the probability that a page is evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mmrh_retriever.cli.options import ModelOptions, OutputOptions, WindowOptions, grouped, load_reranker, say
from mmrh_retriever.encoding.page_store import PageStore
from mmrh_retriever.errors import DataError
from mmrh_retriever.evaluation.calibrating import AskedList, ask, learned
from mmrh_retriever.evaluation.calibration_quality import KEPT, left_out, quality
from mmrh_retriever.evaluation.generated import generated_questions
from mmrh_retriever.evaluation.labelled import read_labelled
from mmrh_retriever.files import is_folder
from mmrh_retriever.pdf.reader import DEFAULT_MAX_PIXELS
from mmrh_retriever.ranking.calibration import CALIBRATION_FILE
from mmrh_retriever.runs.tables import Table


@grouped
def calibrate_command(
    documents: Annotated[Path, typer.Option(help="Folder of PDFs, images, and folders of images.")],
    out: Annotated[Path, typer.Option(help=f"The calibration to write; {CALIBRATION_FILE} beside a model is found.")],
    model: ModelOptions,
    window: WindowOptions,
    output: OutputOptions,
    questions: Annotated[
        Path | None,
        typer.Argument(help='JSON lines: {"document": "a.pdf", "question": "...", "pages": [4]}, pages from 1.'),
    ] = None,
    generate: Annotated[
        int | None, typer.Option(min=1, help="Without QUESTIONS: make so many from the pages' own text. Weaker.")
    ] = None,
    page_pixels: Annotated[int, typer.Option(min=1, help="Pixels that PDF pages are drawn with.")] = DEFAULT_MAX_PIXELS,
    store: Annotated[Path | None, typer.Option(help="Keep encoded pages in this folder.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of generated questions and of the lists drawn.")] = 0,
) -> None:
    """Learn the probability that a page is evidence, from questions whose pages are there and taken away."""
    if (questions is None) == (generate is None):
        got = "neither" if questions is None else "both"
        raise typer.BadParameter(f"give one of QUESTIONS and --generate, got {got}", param_hint="QUESTIONS")
    if is_folder(out) or not is_folder(out.parent):  # found out now, and not when all was asked
        raise typer.BadParameter(f"expected a file in a folder that exists, got {str(out)!r}", param_hint="--out")
    if questions is not None:
        data = read_labelled(questions, documents, max_pixels=page_pixels)
    else:
        data = generated_questions(documents, generate or 0, seed=seed, max_pixels=page_pixels)
    kept = None if store is None else PageStore(folder=store)
    reranker = load_reranker(model, window, store=kept, vision_memory=0, calibration=None)
    asked = list(ask(reranker, data, seed=seed))
    count = sum(one.whole and one.has_answer for one in asked)
    kind = "labelled" if generate is None else "generated"
    learned_from = f"{count} {kind} questions about {len({one.document for one in asked})} documents"
    learned(reranker, asked, source=learned_from).save(out)
    rows = list(_qualities(asked))
    output.show(rows, lambda: [_table(rows, learned_from)] if rows else [])
    say(f"Calibration: {out}. Learned from {learned_from}.")
    if len({one.document for one in asked}) < 2:
        say("How good it is can't be said: that takes two documents, of which each is left out in turn.")


def _qualities(asked: Sequence[AskedList]) -> list[dict[str, Any]]:
    """What the calibration is worth on documents that are left out, with the text layer and by images alone."""
    rows = []
    if len({one.document for one in asked}) > 1:
        images = [one.by_images() for one in asked]
        with_text = {"with the text layer": asked} if any(one.text is not None for one in asked) else {}
        for ranked, lists in {**with_text, "by images alone": images}.items():
            try:
                found = asdict(quality(lists, left_out(lists)))
            except DataError as error:
                say(f"How good it is {ranked} can't be said, each document left out in turn: {error}")
                continue
            figures = {key: list(value.values()) if isinstance(value, dict) else value for key, value in found.items()}
            rows.append({"ranked": ranked, **figures})
    return rows


def _table(rows: list[dict[str, Any]], source: str) -> Table:
    columns = ("", "AUC", "false answers %", "AUC of the first", "probability of the first %", "evidence of them %")
    cells = []
    for row in rows:
        told_apart = _shown(row["auc"]), _shown(row["false_answers"], 100), _shown(row["first_auc"])
        cells.append([row["ranked"], *told_apart, f"{100 * row['expected']:.1f}", _shown(row["found"], 100)])
    notes = [
        "Each document under a calibration learned from the others; in brackets 95 % intervals that draw documents.",
        f"False answers: lists without their answer that pass the threshold which {KEPT:.0%} of the others pass.",
        "The first: pages ranked first, in lists with and without their answer.",
    ]
    return Table.of(f"Is the answer here? {source}", columns, cells, notes=notes)


def _shown(interval: list[float], scale: float = 1) -> str:
    digits = 2 if scale == 1 else 1
    mean, low, high = (f"{scale * value:.{digits}f}" for value in interval)
    return f"{mean} ({low}–{high})"
