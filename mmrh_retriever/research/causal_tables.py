"""What a causal test shows: accuracy by masking, context length and needle depth, with confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmrh_retriever.errors import DataError
from mmrh_retriever.research.causal import CausalRow
from mmrh_retriever.runs.bootstrap import bootstrap_interval, paired_bootstrap
from mmrh_retriever.runs.figures import figure
from mmrh_retriever.runs.tables import Table

MEASURES = ("correct", "exact", "contains", "anls", "fuzzy")
_SAMPLES = 2000
_ROUNDING = 1e-9  # of a mean
_COLOURS = {"unmasked": "#333333", "selected": "#c0392b", "random": "#2980b9", "random, same layers": "#16a085"}


def summarise_causal(rows: Sequence[CausalRow], *, seed: int = 0) -> dict[str, Any]:
    """Means with 95 % bootstrap intervals over probes, ready for JSON. A probe's random draws are averaged first.

    Keys: ``probes``; ``overall`` (one entry per task and masking), ``by_length`` and ``by_depth`` (the same for each).
    An entry has ``task``, ``masked``, ``phase``, ``heads``, ``probes``, each measure's mean, ``low`` and ``high`` for
    ``correct``, ``chance`` (what guessing gets of it) and ``above_chance``. Where something is masked it also has
    ``change``: ``{mean, low, high, p}``, its paired difference to unmasked.

    Raises:
        DataError: no rows.
    """
    if not rows:
        raise DataError("There are no rows to summarise: the causal test answered no probes.")
    lengths = sorted(_groups(rows, lambda row: row.context_length).items())
    depths = sorted(_groups(rows, lambda row: round(row.depth, 4)).items())
    return {
        "probes": len(_groups(rows, lambda row: row.probe)),
        "overall": _entries(rows, seed),
        "by_length": [{**entry, "context_length": one} for one, own in lengths for entry in _entries(own, seed)],
        "by_depth": [{**entry, "depth": one} for one, own in depths for entry in _entries(own, seed)],
    }


def _groups(rows: Iterable[CausalRow], key: Callable[[CausalRow], Any]) -> dict[Any, list[CausalRow]]:
    """Rows by their key, keys in the order in which they first come."""
    found: dict[Any, list[CausalRow]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def _entries(rows: Iterable[CausalRow], seed: int) -> list[dict[str, Any]]:
    """One entry per task and masking."""
    entries = []
    for task, own in _groups(rows, lambda row: row.task).items():
        probes = list(_groups(own, lambda row: row.probe))
        maskings = _groups(own, lambda row: (row.masked, row.phase))
        unmasked = _by_probe(maskings.get(("unmasked", ""), []), probes, "correct")
        for (masked, phase), answers in maskings.items():
            values = {name: _by_probe(answers, probes, name) for name in MEASURES}
            chance = float(np.mean(_by_probe(answers, probes, "chance")))
            interval = bootstrap_interval(values["correct"], samples=_SAMPLES, seed=seed)
            entry: dict[str, Any] = {
                "task": task,
                "masked": masked,
                "phase": phase,
                "heads": answers[0].heads,
                "probes": len(probes),
                **{name: float(np.mean(means)) for name, means in values.items()},
                "low": interval.low,
                "high": interval.high,
                "chance": chance,
                "above_chance": bool(np.mean(values["correct"]) > chance + _ROUNDING),
            }
            if masked != "unmasked" and len(unmasked):
                change = paired_bootstrap(values["correct"], unmasked, samples=_SAMPLES, seed=seed)
                entry["change"] = {"mean": change.difference, "low": change.low, "high": change.high, "p": change.p}
            entries.append(entry)
    return entries


def _by_probe(rows: Iterable[CausalRow], probes: Sequence[str], name: str) -> npt.NDArray[np.float64]:
    """One value per probe: the mean over its random draws."""
    found = _groups(rows, lambda row: row.probe)
    return np.array([np.mean([getattr(row, name) for row in found[probe]]) for probe in probes if probe in found])


def causal_table(summary: dict[str, Any]) -> Table:
    """The overall figures of a summary, in percent. The title says so where the model does not answer."""
    rows = []
    for entry in summary["overall"]:
        change = entry.get("change")
        rows.append((
            entry["task"],
            entry["masked"],
            entry["phase"],
            str(entry["heads"]),
            f"{100 * entry['correct']:.1f} ({100 * entry['low']:.0f}–{100 * entry['high']:.0f})",
            f"{100 * change['mean']:+.1f} (p = {change['p']:.2g})" if change else "",
            f"{100 * entry['anls']:.1f}",
        ))  # fmt: skip
    title = f"Causal test on {summary['probes']} probes, in % (95 % interval over probes)"
    guessed = [
        f"{one['task']}: {100 * one['correct']:.1f} % right unmasked, guessing gives {100 * one['chance']:.1f} %"
        for one in summary["overall"]
        if one["masked"] == "unmasked" and not one["above_chance"]
    ]
    if guessed:
        title += f"\n\nThe model does not answer ({'; '.join(guessed)}): masking has nothing to take away."
    return Table.of(title, ("task", "masked", "phase", "heads", "correct", "change", "ANLS"), rows, text_columns=3)


def plot_causal(summary: dict[str, Any], path: str | Path) -> None:
    """Save a picture of the accuracy by context length and by needle depth, a line per masking, with intervals."""
    tasks = list(dict.fromkeys(entry["task"] for entry in summary["overall"]))
    with figure(path, 11, 3.2 * len(tasks) + 0.6, dpi=120) as made:
        axes = made.subplots(len(tasks), 2, squeeze=False, sharey=True)
        for row, task in enumerate(tasks):
            for column, (cut, name) in enumerate((("by_length", "context_length"), ("by_depth", "depth"))):
                _draw(axes[row][column], [entry for entry in summary[cut] if entry["task"] == task], name)
                axes[row][column].set_title(f"{task}: by {name.replace('_', ' ')}")
            axes[row][0].set_ylabel("accuracy, %")
        handles, labels = axes[0][0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)


def _draw(axis: Any, entries: Sequence[dict[str, Any]], name: str) -> None:
    values = sorted({entry[name] for entry in entries})
    lines = list(dict.fromkeys((entry["masked"], entry["phase"]) for entry in entries))
    for number, (masked, phase) in enumerate(lines):
        own = {entry[name]: entry for entry in entries if (entry["masked"], entry["phase"]) == (masked, phase)}
        ticks = [tick for tick, value in enumerate(values) if value in own]
        found = [own[values[tick]] for tick in ticks]
        middle = np.array([100 * entry["correct"] for entry in found])
        low, high = (np.array([100 * entry[end] for entry in found]) for end in ("low", "high"))
        label = masked + (" (answer only)" if phase == "decode" else "")
        style = "--" if phase == "decode" else "-"
        beside = [tick + 0.06 * (number - (len(lines) - 1) / 2) for tick in ticks]  # equal lines stay apart
        axis.errorbar(
            beside, middle, [middle - low, high - middle], linestyle=style, marker="o", markersize=4, capsize=2,
            elinewidth=0.8, color=_COLOURS[masked], markerfacecolor="white" if phase == "decode" else None, label=label,
        )  # fmt: skip
    axis.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    axis.set_xlim(-0.5, len(values) - 0.5)
    axis.set_ylim(-3, 103)
    axis.grid(alpha=0.3)
