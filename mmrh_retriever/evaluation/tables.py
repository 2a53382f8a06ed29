"""An evaluation as tables, as sentences, and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mmrh_retriever.evaluation.evaluate import Evaluation
from mmrh_retriever.evaluation.metrics import Summary
from mmrh_retriever.runs.bootstrap import Interval
from mmrh_retriever.runs.figures import figure
from mmrh_retriever.runs.tables import Cell, Table

SHOWN_MEASURES = {"page": ("recall@1", "recall@3", "recall@5"), "layout": ("recall@1", "recall@5", "recall@10")}
"""Measures in all tables but one, by level; ``summary.json`` has all measures."""
MORE_MEASURES = {
    "page": ("recall@10", "hit@1", "hit@3", "hit@5", "hit@10", "mrr"),
    "layout": ("capped@1", "capped@5", "capped@10", "coverage@1", "coverage@5", "coverage@10"),
}
"""Measures in the table of further ones."""
LABELS = {"selected": "selected heads", "all-heads": "all heads", "bm25": "BM25", "embedding": "embeddings"}
"""The names in tables of the rankers that the command line makes; others keep their own."""
_GROUPS = {"by_domain": "domain", "by_type": "evidence"}


def label(ranker: str) -> str:
    """A ranker's name for people."""
    return LABELS.get(ranker, ranker)


def result_tables(found: Evaluation) -> list[Table]:
    """All rankers, with comparisons as notes; further measures; by text layer; by domain; by evidence."""
    groups = _first(found).counts
    tables = [overall_table(found), more_table(found)]
    tables += [source_table(found)] if groups["by_source"] else []
    return tables + [group_table(found, group) for group in _GROUPS if groups[group]]


def overall_table(found: Evaluation) -> Table:
    """Rankers as rows: micro means with 95 % intervals, and macro means."""
    measures = SHOWN_MEASURES[found.level]
    columns: dict[str, Sequence[float | Interval]] = {}
    for name in measures:
        columns[f"micro {_short(name)}"] = [found.interval(ranker, name) for ranker in found.summaries]
    for name in measures:
        columns[f"macro {_short(name)}"] = [summary.macro[name] for summary in found.summaries.values()]
    questions = _counted(_first(found).questions, "question")
    documents = _counted(len(next(iter(found.parts.values()))), "document")
    title = f"{found.level.capitalize()} level: {questions} about {documents}, in %"
    return _ranker_table(found, title, columns, notes(found))


def more_table(found: Evaluation) -> Table:
    """Rankers as rows: micro means of further measures."""
    measures = MORE_MEASURES[found.level]
    columns = {_short(name): [summary.micro[name] for summary in found.summaries.values()] for name in measures}
    return _ranker_table(found, "Further measures, micro, in %", columns)


def source_table(found: Evaluation) -> Table:
    """Rankers as rows, documents with a text layer and scans apart: micro means, the first with its interval."""
    first, *others = SHOWN_MEASURES[found.level]
    counts = dict(sorted(_first(found).counts["by_source"].items(), reverse=True))
    columns: dict[str, Sequence[float | Interval]] = {}
    for source in counts:
        columns[f"{source} {_short(first)}"] = [
            found.interval(name, first, source=source) if source in summary.by_source else 0.0
            for name, summary in found.summaries.items()
        ]
        means = [summary.by_source.get(source, {}) for summary in found.summaries.values()]
        columns |= {f"{source} {_short(name)}": [mean.get(name, 0.0) for mean in means] for name in others}
    parts = ", ".join(f"{source} {_counted(count, 'question')}" for source, count in counts.items())
    return _ranker_table(found, f"By text layer, micro: {parts}", columns)


def group_table(found: Evaluation, group: str, measure: str | None = None) -> Table:
    """Groups (``by_domain`` or ``by_type``) as rows, rankers as columns, one measure: the level's first by default."""
    measure = measure or SHOWN_MEASURES[found.level][0]
    rows: list[list[str | Cell]] = [
        [key, str(count), *_marked([getattr(item, group)[key][measure] for item in found.summaries.values()])]
        for key, count in _first(found).counts[group].items()
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
        sure = "significant" if apart.p < 0.05 else "not significant"
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
    """Draw all rankers side by side: micro means with 95 % intervals."""
    measures = SHOWN_MEASURES[found.level]
    count = len(found.summaries)
    width = 0.8 / count
    with figure(path, 2.6 + 1.7 * len(measures), 3.6) as drawn:
        axes = drawn.subplots()
        for number, ranker in enumerate(found.summaries):
            intervals = [found.interval(ranker, name) for name in measures]
            mean, low, high = 100 * np.array([(item.mean, item.low, item.high) for item in intervals]).T
            centres = np.arange(len(measures)) + (number - (count - 1) / 2) * width
            errors = np.maximum(0.0, [mean - low, high - mean])
            axes.bar(centres, mean, width * 0.92, yerr=errors, label=label(ranker), capsize=2, error_kw={"lw": 0.8})
        axes.set_xticks(range(len(measures)), [_short(name) for name in measures])
        axes.set_ylim(0, 100)
        axes.set_ylabel(f"{found.level} level, micro mean in %")
        axes.spines[["top", "right"]].set_visible(False)
        drawn.legend(loc="outside right upper", frameon=False)


def _ranker_table(
    found: Evaluation, title: str, columns: Mapping[str, Sequence[float | Interval]], below: Sequence[str] = ()
) -> Table:
    rows = zip(map(label, found.summaries), *map(_marked, columns.values()), strict=True)
    return Table.of(title, ["", *columns], rows, notes=below)


def _marked(values: Sequence[float | Interval]) -> list[Cell]:
    """Cells in percent; the best is marked if there is another one, ties by the text."""
    means = [value.mean if isinstance(value, Interval) else value for value in values]
    texts = [f"{100 * mean:.1f}" for mean in means]
    best = texts[means.index(max(means))] if len(set(texts)) > 1 else None
    spreads = [
        f" ({100 * value.low:.1f}–{100 * value.high:.1f})" if isinstance(value, Interval) else "" for value in values
    ]
    return [Cell(text + spread, text == best) for text, spread in zip(texts, spreads, strict=True)]


def _first(found: Evaluation) -> Summary:
    """The summary of the first ranker; all have the same questions."""
    return next(iter(found.summaries.values()))


def _short(measure: str) -> str:
    return measure.replace("recall@", "R@").replace("ndcg@", "nDCG@").replace("mrr", "MRR")


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
