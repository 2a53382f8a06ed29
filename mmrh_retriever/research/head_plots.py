"""Pictures of head scores: the map of all heads, how their mass is spread, how sets overlap.

Needs matplotlib, the extra ``plot``. Figures are drawn off screen and share no state with pyplot.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mmrh_retriever.errors import DataError, HeadSetError
from mmrh_retriever.files import write_atomically
from mmrh_retriever.heads.sets import PAPER_SHARE, HeadScores, HeadScoresTable, HeadSet
from mmrh_retriever.research.head_analysis import (
    OverlapMatrix,
    chance_overlap,
    length_overlap,
    mass_curve,
    sparsity,
    task_overlap,
)
from mmrh_retriever.research.head_tables import length_name
from mmrh_retriever.types import FloatArray

_FORMATS = {".png": "png", ".svg": "svg", ".pdf": "pdf"}
_DPI = 150
# Okabe and Ito's colours, told apart with any colour vision.
_LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARK = "#D55E00"
_UNMEASURED = "#bdbdbd"
_NOT_SELECTABLE = "#ececec"
_MAP_LIMITS = (5.0, 14.0)  # inches wide
_MAP_TALLEST = 7.5
_SMALLEST_SCALE = 1e-6  # a map on which no head scores above 0 still needs a colour scale
_CURVE_END = 50.0  # % of heads; beyond it the curves are flat
_DARK_CELL = 0.6  # overlaps above this are written in white


def plot_head_map(
    table: HeadScoresTable,
    path: str | Path,
    task: str | None = None,
    context_length: int | None = None,
    share: float = PAPER_SHARE,
) -> None:
    """Save a map of all heads, layers from left to right, with the best ones framed and counted a layer.

    One task, or each head's best score over all tasks; the longest context unless one is given.

    Raises:
        ImportError: matplotlib is missing.
        HeadSetError: no such condition.
        DataError: the path's ending is not .png, .svg or .pdf, or it can't be written.
    """
    target = _target(path)
    figure = _figure(_map_width(table) + 2.0, _map_height(table) + 2.0)
    counts, grid = figure.subplots(2, 1, sharex=True, height_ratios=[1, _map_height(table)])
    _draw_map(figure, counts, grid, table, task, _length(table, context_length), share)
    _save(figure, target)


def plot_mass_curves(table: HeadScoresTable, path: str | Path, context_length: int | None = None) -> None:
    """Save, for each task, the share of the positive score mass that the best heads hold.

    Raises:
        ImportError: matplotlib is missing.
        HeadSetError: no task was scored at this length.
        DataError: the path's ending is not .png, .svg or .pdf, or it can't be written.
    """
    target = _target(path)
    figure = _figure(6.4, 4.4)
    _draw_curves(figure.subplots(), table, _length(table, context_length))
    _save(figure, target)


def plot_overlaps(
    table: HeadScoresTable, path: str | Path, context_length: int | None = None, share: float = PAPER_SHARE
) -> None:
    """Save the overlaps of the best heads between tasks, and for each task between context lengths.

    Raises:
        ImportError: matplotlib is missing.
        HeadSetError: no task was scored at this length.
        DataError: the path's ending is not .png, .svg or .pdf, or it can't be written.
    """
    target = _target(path)
    length = _length(table, context_length)
    panels = [(f"tasks at {length_name(length)}", task_overlap(table, length, share))]
    panels += [(f"{task}: lengths", _with_length_names(length_overlap(table, task, share))) for task in table.tasks]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(3.9 * columns, 3.7 * rows + 0.4)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for (title, overlaps), axis in zip(panels, axes, strict=False):
        _draw_overlaps(axis, overlaps, title)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    count = len(HeadSet.top(table.first, share, exclude=table.invalid_heads))
    chance = 100 * chance_overlap(table, share)
    figure.suptitle(f"{table.model_id}: overlap of the best {count} heads in % (chance: {chance:.0f})")
    _save(figure, target)


def plot_overview(
    table: HeadScoresTable, path: str | Path, context_length: int | None = None, share: float = PAPER_SHARE
) -> None:
    """Save one picture of it all: the head map over all tasks, mass curves, overlaps between the tasks.

    Raises:
        ImportError: matplotlib is missing.
        HeadSetError: no task was scored at this length.
        DataError: the path's ending is not .png, .svg or .pdf, or it can't be written.
    """
    target = _target(path)
    length = _length(table, context_length)
    map_height = _map_height(table)
    figure = _figure(max(_map_width(table) + 2.0, 11.0), map_height + 6.6)
    upper, lower = figure.subfigures(2, 1, height_ratios=[map_height + 2.0, 4.6])
    counts, grid = upper.subplots(2, 1, sharex=True, height_ratios=[1, map_height])
    _draw_map(upper, counts, grid, table, None, length, share)
    curves, overlaps = lower.subplots(1, 2, width_ratios=[1.5, 1])
    _draw_curves(curves, table, length)
    _draw_overlaps(
        overlaps,
        task_overlap(table, length, share),
        f"overlap of the best heads, % (chance: {100 * chance_overlap(table, share):.0f})",
    )
    _save(figure, target)


def _target(path: str | Path) -> Path:
    target = Path(path)
    if target.suffix.lower() not in _FORMATS:
        raise DataError(f"{target}: pictures are saved as {', '.join(_FORMATS)}. Give the file such an ending.")
    return target


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Plots need matplotlib. Install it with: pip install "mmrh-retriever[plot]"') from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, target: Path) -> None:
    memory = io.BytesIO()
    figure.savefig(memory, format=_FORMATS[target.suffix.lower()], dpi=_DPI)
    write_atomically(target, memory.getvalue())


def _length(table: HeadScoresTable, context_length: int | None) -> int:
    length = max(table.context_lengths) if context_length is None else context_length
    if length not in table.context_lengths:
        raise HeadSetError(
            f"No scores of {table.model_id} at {length} tokens. There are the lengths "
            f"{', '.join(map(str, table.context_lengths))}."
        )
    return length


def _map_width(table: HeadScoresTable) -> float:
    return min(max(0.24 * table.n_layers, _MAP_LIMITS[0]), _MAP_LIMITS[1])


def _map_height(table: HeadScoresTable) -> float:
    return min(max(_map_width(table) * table.n_heads / table.n_layers, 1.5), _MAP_TALLEST)


def _scored_at(table: HeadScoresTable, length: int) -> list[HeadScores]:
    return [scores for (_, scored), scores in table.items() if scored == length]


def _best_over_tasks(scores: Iterable[HeadScores]) -> FloatArray:
    """Each head's best score, NaN where it has none: ``(layers, heads)``."""
    stacked = np.stack([one.values for one in scores])  # (tasks, layers, heads)
    best = np.where(np.isnan(stacked), -np.inf, stacked).max(axis=0)
    return np.where(np.isinf(best), np.nan, best).astype(np.float32)


def _draw_map(
    figure: Any, counts: Any, grid: Any, table: HeadScoresTable, task: str | None, length: int, share: float
) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm
    from matplotlib.patches import Patch, Rectangle

    scores = _scored_at(table, length) if task is None else [table.at(task, length)]
    heads = HeadSet.of_tasks(table, [one.task for one in scores], length, share=share)
    values = _best_over_tasks(scores)
    for head in table.invalid_heads:
        values[head] = np.nan
    top = max(heads.scores or (0.0,))
    # A square-root scale: most heads score far below the best.
    image = grid.imshow(
        np.clip(values, 0.0, None).T,  # (heads, layers)
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap=colormaps["Blues"].with_extremes(bad=_UNMEASURED),
        norm=PowerNorm(0.5, vmin=0.0, vmax=max(top, _SMALLEST_SCALE)),
    )
    width = 1.2 if table.n_layers * table.n_heads < 2_000 else 0.8
    for head in heads:
        grid.add_patch(
            Rectangle((head.layer - 0.5, head.head - 0.5), 1, 1, fill=False, edgecolor=_MARK, linewidth=width)
        )
    _integer_ticks(grid)
    grid.set_xlabel("layer")
    grid.set_ylabel("query head")
    what = "best score over the tasks" if task is None else f"{task} score"
    figure.colorbar(image, ax=grid, label=f"{what}, negative as 0", pad=0.01, fraction=0.03)
    keys = [Patch(facecolor="none", edgecolor=_MARK, label=f"selected, {len(heads)} heads")]
    if table.selectable_layers is not None:
        for layer in set(range(table.n_layers)) - set(table.selectable_layers):
            grid.axvspan(layer - 0.5, layer + 0.5, color=_NOT_SELECTABLE, linewidth=0)
        keys.append(Patch(facecolor=_NOT_SELECTABLE, label="layer without global attention"))
    if np.isnan(values).any():
        keys.append(Patch(facecolor=_UNMEASURED, label="no valid score"))

    by_layer = np.bincount([head.layer for head in heads], minlength=table.n_layers)
    counts.bar(np.arange(table.n_layers), by_layer, width=0.8, color=_MARK)
    counts.set_ylabel("selected")
    counts.tick_params(axis="x", length=0, labelbottom=False)
    counts.yaxis.get_major_locator().set_params(integer=True, nbins=3)
    counts.spines[["top", "right"]].set_visible(False)
    counts.legend(handles=keys, loc="upper left", frameon=False, fontsize="small", ncols=3)
    counts.set_ylim(0, 1.6 * by_layer.max())
    chosen = f"top {100 * share:g} % of heads" + (" of each task" if task is None else f", {task}")
    counts.set_title(f"{table.model_id} at {length_name(length)}: {chosen}")


def _integer_ticks(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def _draw_curves(axis: Any, table: HeadScoresTable, length: int) -> None:
    styles = ("-", "--", "-.", ":")
    for place, scores in enumerate(_scored_at(table, length)):
        if not (scores.values > 0).any():
            axis.plot([], [], " ", label=f"{scores.task}: no positive score")
            continue
        shares, masses = mass_curve(scores.values)
        half = 100 * sparsity(scores.values)
        colour = _LINE_COLOURS[place % len(_LINE_COLOURS)]
        style = styles[place % len(styles)]
        axis.plot(100 * shares, 100 * masses, style, color=colour, label=f"{scores.task}: {half:.1f} %", linewidth=1.6)
        axis.plot([half], [np.interp(half, 100 * shares, 100 * masses)], "o", color=colour, markersize=5)
    axis.axhline(50, color="0.6", linewidth=0.8, zorder=0)
    axis.set_xlim(0, _CURVE_END)
    axis.set_ylim(0, 101)
    axis.set_xlabel("heads, best first, % of all")
    axis.set_ylabel("positive score mass, %")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower right", frameon=False, title="heads that hold half of it")
    axis.set_title(f"{table.model_id} at {length_name(length)}")


def _draw_overlaps(axis: Any, overlaps: OverlapMatrix, title: str) -> None:
    axis.imshow(overlaps.values, vmin=0.0, vmax=1.0, cmap="Blues", interpolation="nearest")
    for i, row in enumerate(overlaps.values):
        for j, value in enumerate(row):
            ink = "white" if value > _DARK_CELL else "black"
            axis.text(j, i, f"{100 * value:.0f}", ha="center", va="center", color=ink, fontsize="small")
    labels = [label.replace("_", "\n") for label in overlaps.labels]
    axis.set_xticks(range(len(labels)), labels, fontsize="small")
    axis.set_yticks(range(len(labels)), labels, fontsize="small")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title(title, fontsize="medium")


def _with_length_names(overlaps: OverlapMatrix) -> OverlapMatrix:
    return OverlapMatrix(tuple(map(length_name, overlaps.labels)), overlaps.values)
