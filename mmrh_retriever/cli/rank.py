"""``mmrh rank``: rank the pages of files for a question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Annotated, Any

import typer

from mmrh_retriever.cli.options import (
    LibraryOptions,
    ModelOptions,
    OutputOptions,
    WindowOptions,
    grouped,
    load_reranker,
    say,
)
from mmrh_retriever.errors import PageError
from mmrh_retriever.files import files_below, is_file, is_folder
from mmrh_retriever.images import IMAGE_ENDINGS
from mmrh_retriever.pdf.backends import PdfBackendName, finds_layout
from mmrh_retriever.ranking.neighbours import Neighbours, neighbours_of
from mmrh_retriever.runs.tables import Table
from mmrh_retriever.types import Page, ScoredPage, ScoredRegion

_SHOWN_TEXT = 60


@dataclass(frozen=True)
class PdfOptions:
    """What is read of PDF files."""

    pages: Annotated[str | None, typer.Option(help="Pages of PDF files, such as '1-3,7' (counted from 1).")] = None
    password: Annotated[str | None, typer.Option(help="Password of encrypted PDF files.")] = None
    pdf_backend: Annotated[
        PdfBackendName, typer.Option(help="What reads PDF files: PyMuPDF where it is installed, or the one named.")
    ] = "auto"


@dataclass(frozen=True)
class ProbabilityOptions:
    """How probable it has to be that a page is evidence."""

    min_probability: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Leave out pages that are less probably evidence.")
    ] = None
    calibration: Annotated[
        Path | None,
        typer.Option(help="From mmrh calibrate; the one beside the model by default, if it holds for the settings."),
    ] = None


@grouped
def rank_command(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="FILE... QUESTION", help="PDF and image files, or folders of them, then the question."),
    ],
    model: ModelOptions,
    window: WindowOptions,
    library: LibraryOptions,
    output: OutputOptions,
    pdf: PdfOptions,
    probability: ProbabilityOptions,
    top_n: Annotated[int, typer.Option(min=1, help="How many pages (or regions) to show.")] = 5,
    regions: Annotated[bool, typer.Option("--regions", help="Rank regions of pages instead of pages.")] = False,
    heatmap: Annotated[
        Path | None, typer.Option(help="Write a heat map PNG of each page shown here, with the boxes of --regions.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write all pages with heat maps and boxes to this HTML file.")
    ] = None,
    neighbours: Annotated[
        Neighbours | None, typer.Option(help="Also show the pages beside the best ones, not counted by --top-n.")
    ] = None,
) -> None:
    """Rank the pages of files for a question, best first."""
    least = probability.min_probability
    if regions and neighbours is not None:
        raise typer.BadParameter("goes with pages, not with --regions", param_hint="--neighbours")
    if regions and least is not None:
        raise typer.BadParameter("regions have no probability; rank pages", param_hint="--min-probability")
    if regions and not finds_layout(pdf.pdf_backend):
        missing = "needs PyMuPDF, as PDFium finds no regions; install it and leave --pdf-backend out, or rank pages"
        raise typer.BadParameter(missing, param_hint="--regions")
    files, question = _files_and_question(arguments)
    layout = regions or (report is not None and finds_layout(pdf.pdf_backend))
    if library.first_stage is not None and (layout or report is not None or pdf.pages or pdf.password):
        alone = "goes with --top-n, --neighbours and --heatmap, not with --regions, --report, --pages or --password"
        raise typer.BadParameter(alone, param_hint="--first-stage")
    documents = [] if library.first_stage else _documents(files)
    reading = {"pages": pdf.pages, "password": pdf.password, "backend": pdf.pdf_backend, "layout": layout}
    listed = [page for file, name in documents for page in _read(file, name, **reading)]
    if regions and not any(page.regions for page in listed):
        raise PageError(
            f"None of the {len(listed)} pages has regions to rank: they are found in PDF files, and these have none. "
            "Rank the pages, without --regions."
        )
    from mmrh_retriever.encoding.page_store import PageStore

    store = PageStore(folder=library.store) if library.store and not library.first_stage else None
    reranker = load_reranker(model, window, store=store, vision_memory=0, calibration=probability.calibration or "auto")
    ranking: list[ScoredPage] = []
    boxes: list[ScoredRegion] = []
    if library.first_stage is not None:
        answer = library.ask(
            files, question, reranker, backend=pdf.pdf_backend, with_tokens=heatmap is not None, progress=True
        )
        listed, ranking = [*answer.pages], answer.ranking
    elif report is not None or (regions and heatmap is not None):  # everything comes from one asking
        explanation = reranker.encode(listed, progress=True).explain(question)
        ranking = explanation.ranking
        boxes = explanation.regions(top_n=top_n) if regions else []
    elif regions:
        boxes = reranker.rank_regions(question, listed, top_n=top_n, progress=True)
    else:
        ranking = reranker.rank(question, listed, with_tokens=heatmap is not None, progress=True)
    found = ranking
    if least is not None:
        from mmrh_retriever.ranking.calibration import passing

        found = list(compress(ranking, passing([one.probability for one in ranking], least, reranker.uncalibrated)))
    best = found[:top_n]
    rows = [_region_row(scored) for scored in boxes] if regions else _page_rows(best, ranking, neighbours, listed)
    output.show(rows, lambda: [_table(rows, question)] if rows else [])
    if heatmap is not None and rows:
        _draw_pages(ranking if regions else best, boxes, heatmap)
    if report is not None:
        from mmrh_retriever.explain.html_report import report_on

        say(f"Report: {report_on(explanation, question, report, reranker=reranker)}")


def _files_and_question(arguments: list[str]) -> tuple[list[Path], str]:
    if len(arguments) < 2:
        raise typer.BadParameter("expected at least one file and the question after it", param_hint="FILE... QUESTION")
    *files, question = arguments
    if is_file(question) or is_folder(question):
        raise typer.BadParameter(
            f"the last argument must be the question, got the file or folder {question!r}",
            param_hint="FILE... QUESTION",
        )
    return [Path(file) for file in files], question


def _documents(files: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Files, those of folders too, each once, with the names that results call them by: paths for names that recur."""
    found: dict[Path, None] = {}
    for file in files:
        inner = files_below(file, (".pdf", *IMAGE_ENDINGS)) if is_folder(file) else [file]
        if not inner:
            raise PageError(f"{file}: no PDF and no image stands in this folder. Give a folder or file that has some.")
        found.update(dict.fromkeys(inner))
    names = Counter(file.name for file in found)
    for file in found:
        yield file, file.name if names[file.name] == 1 else str(file)


def _read(file: Path, name: str, **options: Any) -> list[Page]:
    if file.suffix.lower() in IMAGE_ENDINGS:
        return [Page(image=file, doc_id=name, metadata={"path": str(file)})]
    from mmrh_retriever.pdf.reader import read_pdf

    return read_pdf(file, doc_id=name, **options)


def _page_rows(
    best: Sequence[ScoredPage], ranking: Sequence[ScoredPage], which: Neighbours | None, pages: Sequence[Page]
) -> list[dict[str, Any]]:
    """The best pages of a ranking, and out of all ``pages`` their neighbours behind each.

    Both parts of hybrid scores are shown, and probabilities where a calibration holds. A neighbour that no first stage
    picked has neither rank nor score.
    """
    names = ["score"]
    if any(one.text_score is not None for one in ranking):
        names += ["attention_score", "text_score"]
    probable = any(one.probability is not None for one in ranking)
    scores = {(one.page.doc_id, one.page.index): one for one in ranking}
    known = {(page.doc_id, page.index): page for page in pages}
    hits = [(one.page.doc_id, one.page.index) for one in best]
    rows = []
    for hit, beside in zip(hits, neighbours_of(hits, which), strict=True):
        for key in (hit, *(other for other in beside if other in known)):
            own = scores.get(key)
            row = {"rank": getattr(own, "rank", None), "document": key[0], "page": known[key].number}
            row |= {name: _nine_digits(getattr(own, name, None)) for name in names}
            if probable:
                probability = None if own is None else own.probability
                row["probability"] = None if probability is None else round(probability, 4)
            if which is not None:
                row["neighbour_of"] = None if key == hit else scores[hit].rank
            rows.append(row)
    return rows


def _region_row(scored: ScoredRegion) -> dict[str, Any]:
    size = None if scored.page.size is None else _rounded(scored.page.size)
    box = {"kind": scored.kind, "text": scored.region.text, "box": _rounded(scored.box), "page_size": size}
    found = {"rank": scored.rank, "document": scored.page.doc_id, "page": scored.page.number}
    return found | box | {"score": _nine_digits(scored.score)}


def _nine_digits(score: float | None) -> float | None:
    return None if score is None else float(f"{score:.9g}")


def _rounded(lengths: Sequence[float]) -> list[float]:
    return [round(value, 1) for value in lengths]


def _table(rows: list[dict[str, Any]], title: str) -> Table:
    columns = [name for name in rows[0] if name != "page_size"]
    cells = [[_shown(name, row[name]) for name in columns] for row in rows]
    return Table.of(title, columns, cells, text_columns=5 if "text" in columns else 2)


def _shown(name: str, value: Any) -> str:
    if name == "probability":
        return "" if value is None else f"{value:.2f}"
    if isinstance(value, float):
        return f"{value:.6f}"
    text = " ".join(str("" if value is None else value).split())
    return text if name != "text" or len(text) <= _SHOWN_TEXT else text[: _SHOWN_TEXT - 1] + "…"


def _draw_pages(ranking: Sequence[ScoredPage], regions: Sequence[ScoredRegion], folder: Path) -> None:
    """Heat maps of pages, or of those pages that have regions, named by the rank of the page or of its best region."""
    from mmrh_retriever.explain.heat_maps import full_colour, save_heat_map

    ranks = {id(region.page): region.rank for region in reversed(regions)}
    shown = [scored for scored in ranking if not regions or id(scored.page) in ranks]
    scale = full_colour(shown)
    for scored in sorted(shown, key=lambda scored: ranks.get(id(scored.page), scored.rank)):
        rank = ranks.get(id(scored.page), scored.rank)
        path = folder / f"{rank:02d}-{Path(scored.page.doc_id or 'page').stem}-page-{scored.page.number}.png"
        say(f"Heat map: {save_heat_map(scored, path, regions=regions, scale=scale)}")
