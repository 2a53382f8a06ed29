"""``mmrh``: rank pages from the command line. Results on stdout, everything else on stderr.

Exit codes: 0 done, 2 bad arguments, 1 a failure that the message explains.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from transformers.utils import logging as transformers_logging

import mmrh_retriever
from mmrh_retriever.cli import evaluate as cli_evaluate
from mmrh_retriever.cli.causal import causal_command
from mmrh_retriever.cli.detect import detect_command
from mmrh_retriever.encoding.page_store import PageStore
from mmrh_retriever.errors import HeadSetError, MMRHError
from mmrh_retriever.explain.heat_maps import full_colour, save_heat_map
from mmrh_retriever.heads.sets import HeadSet
from mmrh_retriever.model.loading import model_path
from mmrh_retriever.pdf.reader import read_pdf
from mmrh_retriever.ranking.reranker import EncodedPages, Reranker
from mmrh_retriever.research.head_tables import (
    head_set_summary,
    head_set_tables,
    head_summary,
    head_tables,
    heads_from,
    scores_from,
)
from mmrh_retriever.runs.tables import print_tables
from mmrh_retriever.types import Page, ScoredPage, ScoredRegion

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Rank the pages of documents by what a vision-language model's retrieval heads look at.",
)
app.command("detect")(detect_command)
app.command("causal")(causal_command)
app.add_typer(cli_evaluate.app, name="evaluate")
stderr = Console(stderr=True)
stdout = Console()

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif")

ModelOption = Annotated[
    str | None, typer.Option("--model", help="Hub id or folder; the bundled small model if left out.")
]
HeadsOption = Annotated[
    str, typer.Option("--heads", help="'published', 'all', or the file of a head set or of detected scores.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="The weights' type: bfloat16, float16 or float32.")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cuda, mps, cpu ...; the best there is if left out.")
]


def main(arguments: list[str] | None = None) -> None:
    """Run ``mmrh`` (on ``sys.argv``, if not told otherwise); failures that we know become a message and exit code 1."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=stderr)])
    if not stderr.is_terminal:
        transformers_logging.disable_progress_bar()
    try:
        app(arguments)
    except (MMRHError, OSError, ImportError) as error:  # an ImportError names the extra to install
        stderr.print(f"[bold red]Error:[/] {type(error).__name__}: ", end="")
        stderr.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        stdout.print(f"mmrh-retriever {mmrh_retriever.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Rank the pages of documents by what a vision-language model's retrieval heads look at."""


@app.command()
def rank(
    arguments: Annotated[
        list[str], typer.Argument(metavar="FILE... QUESTION", help="PDF or image files, then the question.")
    ],
    model: ModelOption = None,
    heads: HeadsOption = "published",
    top_n: Annotated[int, typer.Option("--top-n", min=1, help="How many pages (or regions) to show.")] = 5,
    regions: Annotated[bool, typer.Option("--regions", help="Rank regions of pages instead of pages.")] = False,
    heatmap: Annotated[
        Path | None, typer.Option("--heatmap", help="Write a heat map PNG of each page shown here.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write all pages with heat maps and boxes to this HTML file.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option("--store", help="Keep encoded pages in this folder for the next question.")
    ] = None,
    pages: Annotated[
        str | None, typer.Option("--pages", help="Pages of PDF files, such as '1-3,7' (counted from 1).")
    ] = None,
    password: Annotated[str | None, typer.Option("--password", help="Password of encrypted PDF files.")] = None,
    token_budget: Annotated[
        int | None, typer.Option("--token-budget", min=1, help="Longest window, in tokens.")
    ] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rank the pages of files for a question, best first."""
    files, question = _files_and_question(arguments)
    if regions and heatmap is not None:
        raise typer.BadParameter("draws pages, and --regions ranks regions: give one of them", param_hint="--heatmap")
    listed = _read(files, pages=pages, password=password, layout=regions or report is not None)
    kept = None if store is None else PageStore(folder=store)
    reranker = load(model, heads, token_budget=token_budget, dtype=dtype, device=device, store=kept)
    if report is None:
        asked: Reranker | EncodedPages = reranker
        given: dict[str, Any] = {"pages": listed, "progress": True}
    else:  # is asked more than once
        asked, given = reranker.encode(listed, progress=True), {}
    if regions:
        _show_regions(asked.rank_regions(question, top_n=top_n, **given), as_json=as_json)
    else:
        top = asked.rank(question, top_n=top_n, with_tokens=heatmap is not None, **given)
        _show_pages(top, question, as_json=as_json)
        if heatmap is not None:
            _draw_pages(top, heatmap)
    if report is not None and isinstance(asked, EncodedPages):
        from mmrh_retriever.explain.html_report import report_on

        stderr.print(f"Report: {report_on(asked, question, report)}", highlight=False)


@app.command("heads")
def heads_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SCORES_OR_MODEL", help="A scores or head set file, a published model's name, or 'bundled'."
        ),
    ],
    top: Annotated[str, typer.Option("--top", help="Share of all heads that is selected, such as '5%'.")] = "5%",
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw head map, mass curve and overlaps to this PNG.")
    ] = None,
    compare: Annotated[
        str | None, typer.Option("--compare", help="Another scores file or model to compare with.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a model's retrieval heads: sparsity, overlaps, depth, the best heads."""
    table = heads_from(source)
    if isinstance(table, HeadSet):
        if plot is not None or compare is not None:
            raise HeadSetError(
                f"{source} is a head set: it names the best heads and says nothing of the others. For --plot and "
                "--compare give a scores file, as `mmrh detect` writes."
            )
        summary = head_set_summary(table)
        shown = head_set_tables(summary)
    else:
        share = _share(top)
        summary = head_summary(table, share=share, compare=None if compare is None else scores_from(compare))
        shown = head_tables(summary)
        if plot is not None:
            from mmrh_retriever.research.head_plots import plot_overview

            plot_overview(table, plot, share=share)
            stderr.print(f"Plot: {plot}", highlight=False)
    if as_json:
        sys.stdout.write(json.dumps(summary) + "\n")
        return
    print_tables(shown, stdout)


@app.command()
def bench(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="A model, or 'random' or 'random-8b': random weights of real shapes."),
    ] = None,
    heads: HeadsOption = "published",
    pages: Annotated[int, typer.Option("--pages", min=1, help="Page images to rank.")] = 20,
    questions: Annotated[int, typer.Option("--questions", min=1, help="Questions asked together and singly.")] = 16,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How often each pair is measured.")] = 3,
    max_layer: Annotated[
        int | None, typer.Option("--max-layer", min=0, help="Use no heads beyond this layer (counted from 0).")
    ] = None,
    attention: Annotated[str | None, typer.Option("--attention", help="sdpa, eager or flash_attention_2.")] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure our speed against the paper's procedure on plain transformers, both in one run."""
    from mmrh_retriever.benchmark.pairs import run_benchmark
    from mmrh_retriever.benchmark.random_models import SHAPES, random_reranker

    if model is not None and model in SHAPES:
        reranker = random_reranker(model, device=device, dtype=dtype, attention=attention or "sdpa")
    else:
        reranker = load(model, heads, device=device, dtype=dtype, attn_implementation=attention)
    if max_layer is not None:
        reranker = reranker.with_heads(reranker.heads.up_to_layer(max_layer))
    with stderr.status("Measuring ..."):
        measured = run_benchmark(reranker, pages=pages, questions=questions, rounds=rounds)
    if as_json:
        sys.stdout.write(json.dumps(measured.as_dict()) + "\n")
        return
    title = (
        f"{measured.pages} pages, {measured.tokens} tokens, {measured.device}; {measured.heads} heads, layers 0 to "
        f"{measured.deepest} of {measured.layers}; {measured.tokens_per_second:,.0f} tokens a second"
    )
    table = Table(title=title, title_justify="left")
    for column in ("", "times", "spread", "seconds"):
        table.add_column(column, justify="left" if not column else "right")
    for ratio in measured.ratios:
        spread = f"{_times(ratio.low)} to {_times(ratio.high)}"
        table.add_row(ratio.name, _times(ratio.median), spread, f"{ratio.seconds:.3f}")
    stdout.print(table)
    if measured.peak_bytes:
        stdout.print(f"Peak memory {measured.peak_bytes / 1024**3:.1f} GiB")


def _times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.1f}" if ratio >= 10 else f"{ratio:.3f}"


def load(model: str | None, heads: str, **settings: Any) -> Reranker:
    """The reranker that the options name; says on stderr when it is the bundled model."""
    if model_path(model)[1]:
        stderr.print("Using the small bundled model; name a larger one with --model.", style="dim")
    kept = {key: value for key, value in settings.items() if value is not None}
    with stderr.status("Loading the model ..."):
        return Reranker.from_pretrained(model, heads=heads, **kept)


def _files_and_question(arguments: list[str]) -> tuple[list[Path], str]:
    if len(arguments) < 2:
        raise typer.BadParameter("expected at least one file and the question after it", param_hint="FILE... QUESTION")
    *files, question = arguments
    if Path(question).is_file():
        raise typer.BadParameter(
            f"the last argument must be the question, got the file {question!r}", param_hint="FILE... QUESTION"
        )
    return [Path(file) for file in files], question


def _read(files: list[Path], *, pages: str | None, password: str | None, layout: bool) -> list[Page]:
    found: list[Page] = []
    for file in files:
        if file.suffix.lower() in IMAGE_SUFFIXES:
            found.append(Page(image=file, doc_id=file.name, metadata={"path": str(file)}))
        else:
            found.extend(read_pdf(file, pages=pages, password=password, layout=layout))
    return found


def _share(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise typer.BadParameter(f"expected a share such as '5%' or 0.05, got {text!r}", param_hint="--top")
    return value


def _show_pages(top: list[ScoredPage], question: str, *, as_json: bool) -> None:
    def row(scored: ScoredPage) -> dict[str, Any]:
        page = scored.page
        return {
            "rank": scored.rank,
            "document": page.doc_id,
            "page": page.number,
            "score": float(f"{scored.score:.9g}"),
        }

    _show([row(scored) for scored in top], title=question, as_json=as_json)


def _draw_pages(top: list[ScoredPage], folder: Path) -> None:
    scale = full_colour(top)
    for scored in top:
        stem = Path(scored.page.doc_id or "page").stem
        path = folder / f"{scored.rank:02d}-{stem}-page-{scored.page.number}.png"
        stderr.print(f"Heat map: {save_heat_map(scored, path, scale=scale)}", highlight=False)


def _show_regions(top: list[ScoredRegion], *, as_json: bool) -> None:
    def row(scored: ScoredRegion) -> dict[str, Any]:
        return {
            "rank": scored.rank,
            "document": scored.page.doc_id,
            "page": scored.page.number,
            "kind": scored.kind,
            "box": [round(value, 1) for value in scored.box],
            "score": float(f"{scored.score:.9g}"),
        }

    _show([row(scored) for scored in top], title=None, as_json=as_json)


def _show(rows: list[dict[str, Any]], *, title: str | None, as_json: bool) -> None:
    if as_json:
        for row in rows:
            sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
        return
    table = Table(title=title, title_justify="left")
    formats: dict[str, Callable[[Any], str]] = {"score": lambda value: f"{value:.6f}"}
    for name in rows[0]:
        table.add_column(name, justify="right" if name in ("rank", "page", "score") else "left")
    for row in rows:
        table.add_row(*(formats.get(name, str)(value) for name, value in row.items()))
    stdout.print(table)


if __name__ == "__main__":
    main()
