"""``mmrh plan``: what ranking pages with a model takes, before its weights are loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

import typer

from mmrh_retriever.adapters.settings import DEFAULT_PAGE_MEMORY
from mmrh_retriever.cli.options import OutputOptions, SettingOptions, grouped, settings_from


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not found or "0" in found.groups():
        raise typer.BadParameter(f"expected width and height in pixels, such as 1243x1608, got {text!r}")
    return int(found[1]), int(found[2])


@dataclass(frozen=True)
class PlannedModel(SettingOptions):
    """How a model would be loaded, and what it would read at once."""

    dtype: Annotated[str | None, typer.Option(help="The weights' type; as stored if left out.")] = None
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Pixels per image, for models of any size.")] = None
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model on the hub.")] = None
    token_budget: Annotated[int | None, typer.Option(min=1, help="Tokens of pages that are read together.")] = None
    independent: Annotated[
        bool | None,
        typer.Option(
            "--independent/--together", help="Encode each page as if it stood alone; the model says by default."
        ),
    ] = None


@grouped
def plan_command(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a model, or 'bundled'.")],
    planned: PlannedModel,
    output: OutputOptions,
    pages: Annotated[int, typer.Option(min=1, help="Pages to rank.")] = 20,
    page_size: Annotated[
        str | None, typer.Option(metavar="WIDTHxHEIGHT", help="Pixels of a page; a PDF's Letter page if left out.")
    ] = None,
    page_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a page, instead of those of an image: for pages of text.")
    ] = None,
    page_memory: Annotated[
        int, typer.Option(min=0, help="Bytes of encoded pages that an adapter keeps.")
    ] = DEFAULT_PAGE_MEMORY,
    heads: Annotated[
        str, typer.Option(help="'published', 'all', or the file of a head set or of detected scores.")
    ] = "published",
) -> None:
    """Say what ranking pages takes: tokens, windows, memory, operations. No weights are loaded or downloaded."""
    from mmrh_retriever.benchmark.plan import LETTER, empty_reranker, plan

    size = LETTER if page_size is None else _size(page_size)
    reranker, notes = empty_reranker(model, heads, images=page_tokens is None, settings=settings_from(planned))
    found = plan(reranker, pages=pages, page_size=size, page_tokens=page_tokens, page_memory=page_memory, notes=notes)
    output.show([found.as_dict()], lambda: [found.table()])
