"""An evaluation as tables, as sentences, and as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mmrh_retriever.evaluation.evaluate import Evaluation
from mmrh_retriever.runs.bootstrap import Interval
from mmrh_retriever.runs.figures import figure
from mmrh_retriever.runs.tables import Cell, Table

SHOWN_MEASURES = {"page": ("recall@1", "recall@3", "recall@5"), "layout": ("recall@1", "recall@5", "recall@10")}
"""Measures in tables, by level; ``summary.json`` has all of them."""
LABELS = {
    "selected": "selected heads",
    "all-heads": "all heads",
    "bm25": "BM25",
    "embedding": "embeddings",
}
"""The names in tables of the rankers that the command line makes; others keep their own."""
SIGNIFICANT = 0.05
_GROUPS = {"by_domain": "domain", "by_type": "evidence"}


def label(ranker: str) -> str:
    """A ranker's name for people."""
    return LABELS.get(ranker, ranker)


def result_tables(found: Evaluation) -> list[Table]:
    """All rankers, with comparisons as notes; documents with a text layer and scans apart; by domain; by evidence."""
    groups = next(iter(found.summaries.values())).counts
    tables = [overall_table(found)]
    tables += [source_table(found)] if groups["by_source"] else []
    return tables + [group_table(found, group) for group in _GROUPS if groups[group]]


def overall_table(found: Evaluation) -> Table:
    """Rankers as rows: micro means with 95 % intervals, and macro means."""
    measures = SHOWN_MEASURES[found.level]
    columns = [_marked([found.interval(ranker, name) for ranker in found.summaries]) for name in measures]
    columns += [_marked([summary.macro[name] for summary in found.summaries.values()]) for name in measures]
    names = ["", *(f"micro {_short(name)}" for name in measures), *(f"macro {_short(name)}" for name in measures)]
    title = f"{found.level.capitalize()} level: {_questions(found)} about {_documents(found)}, in %"
    return Table.of(title, names, _rows(found, columns), notes=notes(found))


def source_table(found: Evaluation) -> Table:
    """Rankers as rows, documents with a text layer and scans apart: micro means, the first with its interval."""
    measures = SHOWN_MEASURES[found.level]
    counts = next(iter(found.summaries.values())).counts["by_source"]
    names = [""]
    columns: list[list[Cell]] = []
    for source in sorted(counts, reverse=True):
        names += [f"{source} {_short(name)}" for name in measures]
        columns.append(_marked([found.interval(ranker, measures[0], source=source) for ranker in found.summaries]))
        summaries = [summary.by_source.get(source, {}) for summary in found.summaries.values()]
        columns += [_marked([summary.get(name, 0.0) for summary in summaries]) for name in measures[1:]]
    parts = [f"{source} {_counted(counts[source], 'question')}" for source in sorted(counts, reverse=True)]
    return Table.of(f"By text layer, micro: {', '.join(parts)}", names, _rows(found, columns))


def group_table(found: Evaluation, group: str, measure: str | None = None) -> Table:
    """Groups as rows, rankers as columns, one measure.

    Args:
        found: the evaluation.
        group: ``by_domain`` or ``by_type``.
        measure: the level's first by default.
    """
    measure = measure or SHOWN_MEASURES[found.level][0]
    counts = next(iter(found.summaries.values())).counts[group]
    rows: list[list[str | Cell]] = [
        [key, str(count), *_marked([getattr(item, group)[key][measure] for item in found.summaries.values()])]
        for key, count in counts.items()
    ]
    names = [_GROUPS[group], "questions", *map(label, found.summaries)]
    return Table.of(f"{_short(measure)} by {_GROUPS[group]}, in %", names, rows)


def comparisons(found: Evaluation) -> list[str]:
    """How far the first ranker is from each other one, one sentence per ranker: paired bootstrap over documents."""
    first, *others = found.summaries
    measure = SHOWN_MEASURES[found.level][0]
    sentences = []
    for other in others:
        apart = found.compare(first, other, measure)
        side = "above" if apart.difference >= 0 else "below"
        sure = "significant" if apart.p < SIGNIFICANT else "not significant"
        sentences.append(
            f"{label(first)} {100 * abs(apart.difference):.1f} points {side} {label(other)} in {_short(measure)} "
            f"(95 % {100 * apart.low:+.1f} to {100 * apart.high:+.1f}, p = {apart.p:.2g}, {sure} at 5 %)"
        )
    return sentences


def notes(found: Evaluation) -> list[str]:
    """What stands below the tables: comparisons, how to read them, and what has no result."""
    lines = [f"{sentence[0].upper()}{sentence[1:]}." for sentence in comparisons(found)]
    lines.append("In brackets 95 % bootstrap intervals; they and the differences draw whole documents.")
    if found.failed:
        lines.append("Without result, counted as zero: " + ", ".join(sorted(found.failed)) + ".")
    return lines


def markdown_tables(found: Evaluation) -> str:
    """All tables and sentences of an evaluation in Markdown."""
    return "\n".join(table.markdown() for table in result_tables(found))


def plot_comparison(found: Evaluation, path: str | Path) -> None:
    """Draw all rankers side by side: micro means with 95 % intervals.

    Raises:
        ImportError: matplotlib is missing; it names the extra to install.
        DataError: the path's ending is not .png, .svg or .pdf, or the file can't be written.
    """
    measures = SHOWN_MEASURES[found.level]
    count = len(found.summaries)
    width = 0.8 / count
    with figure(path, 2.6 + 1.7 * len(measures), 3.6) as drawn:
        axes = drawn.subplots()
        for number, ranker in enumerate(found.summaries):
            intervals = [found.interval(ranker, name) for name in measures]
            centres = [group + (number - (count - 1) / 2) * width for group in range(len(measures))]
            errors = [
                [100 * max(0.0, item.mean - item.low) for item in intervals],
                [100 * max(0.0, item.high - item.mean) for item in intervals],
            ]
            heights = [100 * item.mean for item in intervals]
            axes.bar(centres, heights, width * 0.92, yerr=errors, label=label(ranker), capsize=2, error_kw={"lw": 0.8})
        axes.set_xticks(range(len(measures)), [_short(name) for name in measures])
        axes.set_ylim(0, 100)
        axes.set_ylabel(f"{found.level} level, micro mean in %")
        axes.spines[["top", "right"]].set_visible(False)
        drawn.legend(loc="outside right upper", frameon=False)


def _rows(found: Evaluation, columns: Sequence[Sequence[Cell]]) -> Iterable[list[str | Cell]]:
    """One row per ranker."""
    return ([label(name), *cells] for name, cells in zip(found.summaries, zip(*columns, strict=True), strict=True))


def _marked(values: Sequence[float | Interval]) -> list[Cell]:
    """Cells in percent; the best is marked if there is another one, ties by the text."""
    means = [value.mean if isinstance(value, Interval) else value for value in values]
    texts = list(_percents(means))
    best = texts[max(range(len(means)), key=means.__getitem__)]
    marks = [len(set(texts)) > 1 and text == best for text in texts]
    return [
        Cell(text + _bracketed(value) if isinstance(value, Interval) else text, mark)
        for text, value, mark in zip(texts, values, marks, strict=True)
    ]


def _percents(values: Sequence[float]) -> Iterator[str]:
    for value in values:
        yield f"{100 * value:.1f}"


def _bracketed(found: Interval) -> str:
    low, high = _percents([found.low, found.high])
    return f" ({low}–{high})"


def _short(measure: str) -> str:
    return measure.replace("recall@", "R@").replace("coverage@", "C@").replace("ndcg@", "nDCG@").replace("mrr", "MRR")


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _questions(found: Evaluation) -> str:
    return _counted(next(iter(found.summaries.values())).questions, "question")


def _documents(found: Evaluation) -> str:
    return _counted(len(next(iter(found.parts.values()))), "document")
