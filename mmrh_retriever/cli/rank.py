"""``mmrh rank``: rank the pages of files for a question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mmrh_retriever.cli.options import ModelOptions, OutputOptions, WindowOptions, grouped, load_reranker, say
from mmrh_retriever.encoding.page_store import PageStore
from mmrh_retriever.explain.heat_maps import full_colour, save_heat_map
from mmrh_retriever.files import is_file
from mmrh_retriever.pdf.reader import read_pdf
from mmrh_retriever.ranking.regions import check_regions
from mmrh_retriever.runs.tables import Table
from mmrh_retriever.types import Page, ScoredPage, ScoredRegion

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif")


@grouped
def rank_command(
    arguments: Annotated[
        list[str], typer.Argument(metavar="FILE... QUESTION", help="PDF or image files, then the question.")
    ],
    model: ModelOptions,
    window: WindowOptions,
    output: OutputOptions,
    top_n: Annotated[int, typer.Option(min=1, help="How many pages (or regions) to show.")] = 5,
    regions: Annotated[bool, typer.Option("--regions", help="Rank regions of pages instead of pages.")] = False,
    heatmap: Annotated[Path | None, typer.Option(help="Write a heat map PNG of each page shown here.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write all pages with heat maps and boxes to this HTML file.")
    ] = None,
    store: Annotated[Path | None, typer.Option(help="Keep encoded pages in this folder for the next question.")] = None,
    pages: Annotated[str | None, typer.Option(help="Pages of PDF files, such as '1-3,7' (counted from 1).")] = None,
    password: Annotated[str | None, typer.Option(help="Password of encrypted PDF files.")] = None,
) -> None:
    """Rank the pages of files for a question, best first."""
    files, question = _files_and_question(arguments)
    if regions and heatmap is not None:
        raise typer.BadParameter("draws pages, and --regions ranks regions: give one of them", param_hint="--heatmap")
    reading = {"pages": pages, "password": password, "layout": regions or report is not None}
    listed = [page for file in files for page in _read(file, **reading)]
    if regions:
        check_regions(listed, "page")
    reranker = load_reranker(model, window, store=None if store is None else PageStore(folder=store))
    top: Sequence[ScoredPage | ScoredRegion]
    if report is not None:  # everything comes from one asking
        explanation = reranker.encode(listed, progress=True).explain(question)
        top = explanation.regions(top_n=top_n) if regions else explanation.ranking[:top_n]
    elif regions:
        top = reranker.rank_regions(question, listed, top_n=top_n, progress=True)
    else:
        top = reranker.rank(question, listed, top_n=top_n, with_tokens=heatmap is not None, progress=True)
    rows = [_row(scored) for scored in top]
    output.show(rows, lambda: [_table(rows, "" if regions else question)])
    if heatmap is not None:
        _draw_pages([scored for scored in top if isinstance(scored, ScoredPage)], heatmap)
    if report is not None:
        from mmrh_retriever.explain.html_report import report_on

        say(f"Report: {report_on(explanation, question, report, reranker=reranker)}")


def _files_and_question(arguments: list[str]) -> tuple[list[Path], str]:
    if len(arguments) < 2:
        raise typer.BadParameter("expected at least one file and the question after it", param_hint="FILE... QUESTION")
    *files, question = arguments
    if is_file(question):
        raise typer.BadParameter(
            f"the last argument must be the question, got the file {question!r}", param_hint="FILE... QUESTION"
        )
    return [Path(file) for file in files], question


def _read(file: Path, **options: Any) -> list[Page]:
    if file.suffix.lower() in IMAGE_SUFFIXES:
        return [Page(image=file, doc_id=file.name, metadata={"path": str(file)})]
    return read_pdf(file, **options)


def _row(scored: ScoredPage | ScoredRegion) -> dict[str, Any]:
    row: dict[str, Any] = {"rank": scored.rank, "document": scored.page.doc_id, "page": scored.page.number}
    if isinstance(scored, ScoredRegion):
        row |= {"kind": scored.kind, "box": [round(value, 1) for value in scored.box]}
    return row | {"score": float(f"{scored.score:.9g}")}


def _table(rows: list[dict[str, Any]], title: str) -> Table:
    cells = [[f"{value:.6f}" if name == "score" else str(value) for name, value in row.items()] for row in rows]
    return Table.of(title, list(rows[0]), cells, text_columns=2)


def _draw_pages(top: Sequence[ScoredPage], folder: Path) -> None:
    scale = full_colour(top)
    for scored in top:
        stem = Path(scored.page.doc_id or "page").stem
        path = folder / f"{scored.rank:02d}-{stem}-page-{scored.page.number}.png"
        say(f"Heat map: {save_heat_map(scored, path, scale=scale)}")
