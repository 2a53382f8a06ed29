"""What a causal test shows: accuracy by masking, context length and needle depth, with confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from mmrh_retriever.errors import DataError
from mmrh_retriever.research.causal import CausalRow
from mmrh_retriever.runs.bootstrap import bootstrap_interval, paired_bootstrap

MEASURES = ("correct", "exact", "contains", "anls", "fuzzy")
_SAMPLES = 2000
_HEADS = ["task", "masked", "while", "heads", "accuracy", "change", "ANLS"]
_TEXT_COLUMNS = 3
_ENDINGS = (".png", ".svg", ".pdf")


def summarise_causal(rows: Sequence[CausalRow], *, seed: int = 0) -> dict[str, Any]:
    """Means with 95 % bootstrap intervals over probes (a probe's random draws are averaged first), ready for JSON.

    Keys: ``probes``; ``overall`` (one entry a task and masking), ``by_length`` and ``by_depth``. An entry has ``task``,
    ``masked``, ``phase``, ``heads``, ``probes``, each measure's mean, ``low`` and ``high`` for ``correct``, and, where
    something is masked, ``change``: ``{mean, low, high, p}``, its paired difference to unmasked.

    Raises:
        DataError: no rows.
    """
    if not rows:
        raise DataError("There are no rows to summarise: the causal test answered no probes.")

    def cut(*keys: Callable[[CausalRow], Hashable]) -> list[dict[str, Any]]:
        groups: dict[tuple[Hashable, ...], list[CausalRow]] = {}
        for row in rows:
            groups.setdefault(tuple(key(row) for key in keys), []).append(row)
        return [entry for group in groups.values() for entry in _entries(group, seed)]

    return {
        "probes": len({row.probe for row in rows}),
        "overall": cut(lambda row: row.task),
        "by_length": [
            {**entry, "context_length": length}
            for length in sorted({row.context_length for row in rows})
            for entry in _by_task([row for row in rows if row.context_length == length], seed)
        ],
        "by_depth": [
            {**entry, "depth": depth}
            for depth in sorted({round(row.depth, 4) for row in rows})
            for entry in _by_task([row for row in rows if round(row.depth, 4) == depth], seed)
        ],
    }


def _by_task(rows: Sequence[CausalRow], seed: int) -> list[dict[str, Any]]:
    tasks = dict.fromkeys(row.task for row in rows)
    return [entry for task in tasks for entry in _entries([row for row in rows if row.task == task], seed)]


def _entries(rows: Sequence[CausalRow], seed: int) -> list[dict[str, Any]]:
    """One entry a masking, of rows of one task."""
    conditions = dict.fromkeys((row.masked, row.phase) for row in rows)
    probes = list(dict.fromkeys(row.probe for row in rows))
    unmasked = _by_probe([row for row in rows if row.masked == "unmasked"], probes, "correct")
    entries = []
    for masked, phase in conditions:
        own = [row for row in rows if (row.masked, row.phase) == (masked, phase)]
        correct = _by_probe(own, probes, "correct")
        interval = bootstrap_interval(correct, samples=_SAMPLES, seed=seed)
        entry: dict[str, Any] = {
            "task": rows[0].task,
            "masked": masked,
            "phase": phase,
            "heads": own[0].heads,
            "probes": len(probes),
            **{name: float(np.mean(_by_probe(own, probes, name))) for name in MEASURES},
            "low": interval.low,
            "high": interval.high,
        }
        if masked != "unmasked" and len(unmasked):
            change = paired_bootstrap(correct, unmasked, samples=_SAMPLES, seed=seed)
            entry["change"] = {"mean": change.difference, "low": change.low, "high": change.high, "p": change.p}
        entries.append(entry)
    return entries


def _by_probe(rows: Iterable[CausalRow], probes: Sequence[str], name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """One value a probe: the mean over its random draws."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row.probe, []).append(float(getattr(row, name)))
    return np.array([np.mean(found[probe]) for probe in probes if probe in found])


def causal_table(summary: dict[str, Any]) -> Table:
    """The overall figures as a table for a terminal, in percent."""
    table = Table(title=f"Causal test on {summary['probes']} probes, accuracy in % (95 % interval over probes)")
    for place, name in enumerate(_HEADS):
        table.add_column(name, justify="left" if place < _TEXT_COLUMNS else "right")
    for cells in _cells(summary):
        table.add_row(*cells)
    return table


def causal_markdown(summary: dict[str, Any]) -> str:
    """The overall figures as a table in Markdown, in percent."""
    rule = ["---"] * _TEXT_COLUMNS + ["---:"] * (len(_HEADS) - _TEXT_COLUMNS)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (_HEADS, rule, *_cells(summary)))


def _cells(summary: dict[str, Any]) -> Iterator[list[str]]:
    for entry in summary["overall"]:
        change = entry.get("change")
        yield [
            entry["task"],
            entry["masked"],
            {"all": "read + answer", "decode": "answer"}.get(entry["phase"], ""),
            str(entry["heads"]),
            f"{100 * entry['correct']:.1f} ({100 * entry['low']:.0f}–{100 * entry['high']:.0f})",
            f"{100 * change['mean']:+.1f} (p = {change['p']:.2g})" if change else "",
            f"{100 * entry['anls']:.1f}",
        ]


def plot_causal(summary: dict[str, Any], path: str | Path) -> None:
    """Save accuracy by context length and by needle depth, a line a masking, with intervals.

    Raises:
        ImportError: matplotlib is missing.
        DataError: the path's ending is not .png, .svg or .pdf.
    """
    target = Path(path)
    if target.suffix.lower() not in _ENDINGS:
        raise DataError(f"{target}: pictures are saved as {', '.join(_ENDINGS)}. Give the file such an ending.")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Plots need matplotlib. Install it with: pip install "mmrh-retriever[plot]"') from error
    tasks = list(dict.fromkeys(entry["task"] for entry in summary["overall"]))
    figure = Figure(figsize=(11, 3.2 * len(tasks) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(tasks), 2, squeeze=False, sharey=True)
    for row, task in enumerate(tasks):
        for column, (cut, name) in enumerate((("by_length", "context_length"), ("by_depth", "depth"))):
            _draw(axes[row][column], [entry for entry in summary[cut] if entry["task"] == task], name)
            axes[row][column].set_title(f"{task}: by {name.replace('_', ' ')}")
        axes[row][0].set_ylabel("accuracy, %")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(target, dpi=120)


def _draw(axis: Any, entries: Sequence[dict[str, Any]], name: str) -> None:
    colours = {"unmasked": "#333333", "selected": "#c0392b", "random": "#2980b9", "random, same layers": "#16a085"}
    places = sorted({entry[name] for entry in entries})
    lines = list(dict.fromkeys((entry["masked"], entry["phase"]) for entry in entries))
    for number, (masked, phase) in enumerate(lines):
        own = {entry[name]: entry for entry in entries if (entry["masked"], entry["phase"]) == (masked, phase)}
        xs = [place for place, value in enumerate(places) if value in own]
        found = [own[places[place]] for place in xs]
        middle = np.array([100 * entry["correct"] for entry in found])
        low, high = (np.array([100 * entry[end] for entry in found]) for end in ("low", "high"))
        label = masked + (" (answer only)" if phase == "decode" else "")
        style = "--" if phase == "decode" else "-"
        beside = [place + 0.06 * (number - (len(lines) - 1) / 2) for place in xs]  # equal lines stay apart
        axis.errorbar(
            beside, middle, [middle - low, high - middle], linestyle=style, marker="o", markersize=4, capsize=2,
            elinewidth=0.8, color=colours[masked], markerfacecolor="white" if phase == "decode" else None, label=label,
        )  # fmt: skip
    axis.set_xticks(range(len(places)), [f"{place:g}" for place in places])
    axis.set_xlim(-0.5, len(places) - 0.5)
    axis.set_ylim(-3, 103)
    axis.grid(alpha=0.3)
