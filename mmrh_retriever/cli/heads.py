"""``mmrh heads``: what head scores, or a head set, say of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmrh_retriever.cli.options import OutputOptions, grouped, say
from mmrh_retriever.errors import HeadSetError
from mmrh_retriever.heads.sets import HeadSet
from mmrh_retriever.research.head_tables import (
    head_set_summary,
    head_set_tables,
    head_summary,
    head_tables,
    heads_from,
    scores_from,
)


@grouped
def heads_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SCORES_OR_MODEL", help="A scores or head set file, a published model's name, or 'bundled'."
        ),
    ],
    output: OutputOptions,
    top: Annotated[str, typer.Option(help="Share of all heads that is selected, such as '5%'.")] = "5%",
    plot: Annotated[Path | None, typer.Option(help="Draw head map, mass curve and overlaps to this PNG.")] = None,
    compare: Annotated[str | None, typer.Option(help="Another scores file or model to compare with.")] = None,
) -> None:
    """Show a model's retrieval heads: sparsity, overlaps, depth, the best heads."""
    share = _share(top)
    found = heads_from(source)
    if isinstance(found, HeadSet):
        if plot is not None or compare is not None:
            raise HeadSetError(
                f"{source} is a head set: it names the best heads and says nothing of the others. For --plot and "
                "--compare give a scores file, as `mmrh detect` writes."
            )
        about = head_set_summary(found)
        output.show([about], lambda: head_set_tables(about))
        return
    about = head_summary(found, share=share, compare=None if compare is None else scores_from(compare))
    if plot is not None:
        from mmrh_retriever.research.head_plots import plot_overview

        plot_overview(found, plot, share=share)
        say(f"Plot: {plot}")
    output.show([about], lambda: head_tables(about))


def _share(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise typer.BadParameter(f"expected a share such as '5%' or 0.05, got {text!r}", param_hint="--top")
    return value
