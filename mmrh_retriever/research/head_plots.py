"""A picture of head scores: the map of all heads, how their mass is spread, how sets overlap.

Needs matplotlib, the extra ``plot``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmrh_retriever.errors import HeadSetError
from mmrh_retriever.heads.sets import PAPER_SHARE, HeadScores, HeadScoresTable, HeadSet
from mmrh_retriever.research.head_analysis import (
    OverlapMatrix,
    chance_overlap,
    layer_spread,
    mass_curve,
    sparsity,
    task_overlap,
)
from mmrh_retriever.research.head_tables import length_name
from mmrh_retriever.runs.figures import COLOURS, figure

_MARK = COLOURS[1]
_UNMEASURED = "#bdbdbd"
_NOT_SELECTABLE = "#ececec"


def plot_overview(
    table: HeadScoresTable, path: str | Path, context_length: int | None = None, share: float = PAPER_SHARE
) -> None:
    """Save a picture of a model's heads: all by layer, with the best framed and counted; mass curves; overlaps.

    The map shows each head's best score over all tasks. Curves show, for each task, the share of the positive score
    mass that the best heads hold. The longest context is drawn unless one is given.
    """
    length = max(table.context_lengths) if context_length is None else context_length
    scores = [one for (_, scored), one in table.items() if scored == length]
    if not scores:
        raise HeadSetError(
            f"No scores of {table.model_id} at {length} tokens. There are the lengths "
            f"{', '.join(map(str, table.context_lengths))}."
        )
    map_width = float(np.clip(0.24 * table.n_layers, 5.0, 14.0))  # inches
    map_height = float(np.clip(map_width * table.n_heads / table.n_layers, 1.5, 7.5))
    with figure(path, max(map_width + 2.0, 11.0), map_height + 6.6) as made:
        upper, lower = made.subfigures(2, 1, height_ratios=[map_height + 2.0, 4.6])
        counts, grid = upper.subplots(2, 1, sharex=True, height_ratios=[1, map_height])
        heads = HeadSet.of_tasks(table, [one.task for one in scores], length, share=share)
        keys = _draw_map(upper, grid, table, heads, scores)
        _draw_counts(counts, table, heads, keys)
        counts.set_title(f"{table.model_id} at {length_name(length)}: top {100 * share:g} % of heads of each task")
        curves, overlaps = lower.subplots(1, 2, width_ratios=[1.5, 1])
        _draw_curves(curves, scores)
        curves.set_title(f"{table.model_id} at {length_name(length)}")
        _draw_overlaps(overlaps, task_overlap(table, length, share))
        chance = 100 * chance_overlap(table, share)
        overlaps.set_title(f"overlap of the best heads, % (chance: {chance:.0f})", fontsize="medium")


def _draw_map(made: Any, grid: Any, table: HeadScoresTable, heads: HeadSet, scores: Sequence[HeadScores]) -> list[Any]:
    """All heads, layers from left to right, with the selected ones framed. Gives the keys of its legend."""
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm
    from matplotlib.patches import Patch, Rectangle
    from matplotlib.ticker import MaxNLocator

    values = np.fmax.reduce([one.values for one in scores])  # (layers, heads), NaN where a head has no score
    for head in table.invalid_heads:
        values[head] = np.nan
    top = max((1e-6, *(heads.scores or ())))  # without positive scores the map still needs a colour scale
    # A square-root scale: most heads score far below the best.
    image = grid.imshow(
        np.clip(values, 0.0, None).T, origin="lower", aspect="auto", interpolation="nearest",  # (heads, layers)
        cmap=colormaps["Blues"].with_extremes(bad=_UNMEASURED), norm=PowerNorm(0.5, vmin=0.0, vmax=top),
    )  # fmt: skip
    width = 1.2 if table.n_layers * table.n_heads < 2_000 else 0.8
    for head in heads:
        grid.add_patch(
            Rectangle((head.layer - 0.5, head.head - 0.5), 1, 1, fill=False, edgecolor=_MARK, linewidth=width)
        )
    grid.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
    grid.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    grid.set_xlabel("layer")
    grid.set_ylabel("query head")
    made.colorbar(image, ax=grid, label="best score over the tasks, negative as 0", pad=0.01, fraction=0.03)
    keys = [Patch(facecolor="none", edgecolor=_MARK, label=f"selected, {len(heads)} heads")]
    if table.selectable_layers is not None:
        for layer in set(range(table.n_layers)) - set(table.selectable_layers):
            grid.axvspan(layer - 0.5, layer + 0.5, color=_NOT_SELECTABLE, linewidth=0)
        keys.append(Patch(facecolor=_NOT_SELECTABLE, label="layer without global attention"))
    if np.isnan(values).any():
        keys.append(Patch(facecolor=_UNMEASURED, label="no valid score"))
    return keys


def _draw_counts(axis: Any, table: HeadScoresTable, heads: HeadSet, keys: Sequence[Any]) -> None:
    """The number of selected heads in each layer, with the map's legend above."""
    by_layer = layer_spread(heads, table.n_layers)
    axis.bar(np.arange(table.n_layers), by_layer, width=0.8, color=_MARK)
    axis.set_ylabel("selected")
    axis.tick_params(axis="x", length=0, labelbottom=False)
    axis.yaxis.get_major_locator().set_params(integer=True, nbins=3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(handles=keys, loc="upper left", frameon=False, fontsize="small", ncols=3)
    axis.set_ylim(0, 1.6 * by_layer.max())


def _draw_curves(axis: Any, every: Sequence[HeadScores]) -> None:
    """For each task, the share of the positive score mass that the best heads hold."""
    for number, scores in enumerate(every):
        if not (scores.values > 0).any():
            axis.plot([], [], " ", label=f"{scores.task}: no positive score")
            continue
        shares, masses = mass_curve(scores.values)
        half = 100 * sparsity(scores.values)
        colour, style = COLOURS[number % len(COLOURS)], ("-", "--", "-.", ":")[number % 4]
        axis.plot(100 * shares, 100 * masses, style, color=colour, label=f"{scores.task}: {half:.1f} %", linewidth=1.6)
        axis.plot([half], [np.interp(half, 100 * shares, 100 * masses)], "o", color=colour, markersize=5)
    axis.axhline(50, color="0.6", linewidth=0.8, zorder=0)
    axis.set_xlim(0, 50)  # beyond half of the heads the curves are flat
    axis.set_ylim(0, 101)
    axis.set_xlabel("heads, best first, % of all")
    axis.set_ylabel("positive score mass, %")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower right", frameon=False, title="heads that hold half of it")


def _draw_overlaps(axis: Any, overlaps: OverlapMatrix) -> None:
    axis.imshow(overlaps.values, vmin=0.0, vmax=1.0, cmap="Blues", interpolation="nearest")
    for i, row in enumerate(overlaps.values):
        for j, value in enumerate(row):
            ink = "white" if value > 0.6 else "black"
            axis.text(j, i, f"{100 * value:.0f}", ha="center", va="center", color=ink, fontsize="small")
    labels = [label.replace("_", "\n") for label in overlaps.labels]
    axis.set_xticks(range(len(labels)), labels, fontsize="small")
    axis.set_yticks(range(len(labels)), labels, fontsize="small")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
