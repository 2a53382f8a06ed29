"""An evaluation as a table for people, as Markdown, and as a picture."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from mmrh_retriever.evaluation import Evaluation
from mmrh_retriever.metrics import Interval, PairedDifference

SHOWN_MEASURES = {"page": ("recall@1", "recall@3", "recall@5", "mrr"), "layout": ("recall@1", "recall@5", "recall@10")}
"""Measures in tables, by level; ``summary.json`` has all of them."""


def comparison_rows(found: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table of all rankers, in percent, the first measure with its 95 % intervals.

    The last column compares the first ranker with this one: the difference of the first measure (micro), and the
    two-sided p of a paired bootstrap that draws documents.
    """
    shown = SHOWN_MEASURES[found.level]
    first = next(iter(found.summaries))
    heads = ["ranker", *(f"{average} {_short(name)}" for average in ("micro", "macro") for name in shown)]
    heads += [f"{first} above it, {_short(shown[0])}"] if len(found.summaries) > 1 else []
    rows = []
    for ranker in found.summaries:
        cells = [ranker]
        for average, values in (("micro", found.summaries[ranker].micro), ("macro", found.summaries[ranker].macro)):
            interval = found.interval(ranker, shown[0], macro=average == "macro")
            cells += [_with_interval(interval), *(_percent(values[name]) for name in shown[1:])]
        if len(found.summaries) > 1:
            cells.append("" if ranker == first else _difference(found.compare(first, ranker, shown[0])))
        rows.append(cells)
    return heads, rows


def group_rows(found: Evaluation, group: str, measure: str | None = None) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of one measure by group, in percent.

    Args:
        found: the evaluation.
        group: ``by_domain``, ``by_type`` or ``by_source``.
        measure: the level's first by default.
    """
    measure = measure or SHOWN_MEASURES[found.level][0]
    summaries = list(found.summaries.values())
    counts = summaries[0].counts[group]
    heads = [group.removeprefix("by_"), "questions", *(f"{name} {_short(measure)}" for name in found.summaries)]
    cells = [
        [key, str(counts[key]), *(_percent(getattr(summary, group)[key][measure]) for summary in summaries)]
        for key in counts
    ]
    return heads, cells


def as_rich(heads: list[str], rows: list[list[str]], *, title: str | None = None) -> Table:
    """A table for the terminal."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for place, head in enumerate(heads):
        table.add_column(head, justify="left" if place == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table


def turned(heads: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """A table with its rows as columns, intervals on lines of their own: narrow enough for a terminal."""
    first, *others = zip(heads, *rows, strict=True)
    return list(first), [[cell.replace(" (", "\n(").replace("), ", ")\n") for cell in line] for line in others]


def as_markdown(heads: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---", *(["---:"] * (len(heads) - 1))], *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def markdown_report(found: Evaluation) -> str:
    """All tables of an evaluation in Markdown."""
    questions = next(iter(found.summaries.values())).questions
    parts = [f"{questions} questions, {found.level} level, in percent.\n", as_markdown(*comparison_rows(found))]
    measures = SHOWN_MEASURES[found.level][:3]
    parts += [as_markdown(*group_rows(found, "by_source", measure)) for measure in measures]
    parts += [as_markdown(*group_rows(found, group)) for group in ("by_domain", "by_type")]
    if found.failed:
        parts.append("Without result, counted as zero: " + ", ".join(sorted(found.failed)) + ".\n")
    return "\n".join(parts)


def plot_comparison(found: Evaluation, path: str | Path) -> None:
    """Draw all rankers side by side: micro means with 95 % intervals.

    Raises:
        ImportError: matplotlib is missing; it names the extra to install.
    """
    try:
        figures: Any = import_module("matplotlib.figure")
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'mmrh-retriever[plot]'.") from error
    shown = SHOWN_MEASURES[found.level]
    figure = figures.Figure(figsize=(1.6 + 1.7 * len(shown), 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(found.summaries)
    for place, ranker in enumerate(found.summaries):
        intervals = [found.interval(ranker, name) for name in shown]
        xs = [number + (place - (len(found.summaries) - 1) / 2) * width for number in range(len(shown))]
        errors = [
            [100 * max(0.0, item.mean - item.low) for item in intervals],
            [100 * max(0.0, item.high - item.mean) for item in intervals],
        ]
        heights = [100 * item.mean for item in intervals]
        axes.bar(xs, heights, width * 0.92, yerr=errors, label=ranker, capsize=2, error_kw={"lw": 0.8})
    axes.set_xticks(range(len(shown)), [_short(name) for name in shown])
    axes.set_ylim(0, 100)
    axes.set_ylabel(f"{found.level} level, micro mean in %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(Path(path), dpi=150)


def _short(measure: str) -> str:
    return measure.replace("recall@", "R@").replace("coverage@", "C@").replace("ndcg@", "nDCG@").replace("mrr", "MRR")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _with_interval(found: Interval) -> str:
    return f"{_percent(found.mean)} ({_percent(found.low)} to {_percent(found.high)})"


def _difference(found: PairedDifference) -> str:
    return f"{100 * found.difference:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f}), p = {found.p:.3g}"
