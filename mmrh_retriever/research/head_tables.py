"""What a model's head scores say: a summary as plain data, and the same as tables.

Definitions follow "Can Retrieval Heads See Images?", Li et al. 2026, arXiv 2605.27243. Pictures of the same
are in :mod:`mmrh_retriever.research.head_plots`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmrh_retriever.files import format_of, is_file, read_text
from mmrh_retriever.heads.file_formats import SET_FORMAT
from mmrh_retriever.heads.published import published_head_scores
from mmrh_retriever.heads.sets import PAPER_SHARE, HeadId, HeadScores, HeadScoresTable, HeadSet
from mmrh_retriever.model.loading import BUNDLED, BUNDLED_FOLDER, HEADS_FILE
from mmrh_retriever.research.head_analysis import (
    OverlapMatrix,
    chance_overlap,
    layer_spread,
    length_overlap,
    model_overlap,
    sparsity,
    task_overlap,
)
from mmrh_retriever.runs.tables import Table
from mmrh_retriever.types import FloatArray

_DECIMALS = 6
_MISSING = "–"


def scores_from(source: str | Path) -> HeadScoresTable:
    """Head scores from a file, or those published for a model id or name."""
    path = Path(source)
    if is_file(path) or path.suffix in (".json", ".gz"):
        return HeadScoresTable.load(path)
    return published_head_scores(str(source))


def heads_from(source: str | Path) -> HeadScoresTable | HeadSet:
    """A model's head scores, or a bare head set: from a file, a folder with one, or by the name ``bundled``."""
    path = BUNDLED_FOLDER if str(source) == BUNDLED else Path(source)
    path = path / HEADS_FILE if is_file(path / HEADS_FILE) else path
    what = "head set or file of head scores"
    if is_file(path) and format_of(read_text(path, what=what), where=str(path), what=what) == SET_FORMAT:
        return HeadSet.load(path)
    return scores_from(source)


def head_set_summary(heads: HeadSet) -> dict[str, Any]:
    """What a bare head set says, ready for JSON. It knows no other heads, so there are no shares and overlaps."""
    return {
        "model": heads.model_id,
        "source": heads.source,
        "n_layers": heads.n_layers,
        "n_heads": heads.n_heads,
        "tasks": list(heads.tasks),
        "context_length": heads.context_length,
        "size": len(heads),
        "deepest_layer": heads.deepest_layer,
        "by_layer": None if heads.n_layers is None else layer_spread(heads).tolist(),
        "heads": [str(head) for head in heads],
        "scores": None if heads.scores is None else [round(score, _DECIMALS) for score in heads.scores],
    }


def head_set_tables(summary: dict[str, Any]) -> list[Table]:
    """A summary of :func:`head_set_summary` as a table."""
    scores = [_MISSING] * summary["size"] if summary["scores"] is None else [f"{one:.3f}" for one in summary["scores"]]
    rows = [(str(rank), *row) for rank, row in enumerate(zip(summary["heads"], scores, strict=True), start=1)]
    size = "" if summary["n_layers"] is None else f" of {summary['n_layers']} x {summary['n_heads']}"
    title = f"{summary['model'] or 'Head set'}: {summary['size']} heads{size} (layer-head)"
    notes = [summary["source"]] if summary["source"] else []
    if summary["context_length"]:
        notes.append(f"Tasks: {', '.join(summary['tasks']) or 'unknown'}, at {summary['context_length']:,} tokens.")
    return [Table.of(title, ("rank", "head", "score"), rows, notes=notes)]


def head_summary(
    table: HeadScoresTable, *, share: float = PAPER_SHARE, top_n: int = 10, compare: HeadScoresTable | None = None
) -> dict[str, Any]:
    """Everything that can be said of a model's heads without the model, ready for JSON.

    Keys, all always there (lengths are strings, as JSON needs):

    - ``model``, ``source``, ``n_layers``, ``n_heads`` (per layer), ``selectable_layers`` (``None``: all), ``tasks``,
      ``context_lengths``, ``invalid_heads`` (an impossible score under some condition, never selected)
    - ``share`` and ``heads_per_task``: how many of the best heads the following is about
    - ``sparsity[task][length or "mean"]``: the share of heads with half of the positive score mass (definition 5),
      ``None`` where no head scores above 0; ``sparsity_as_given``: with impossible scores, as in published figures
    - ``task_overlap[length]``, ``length_overlap[task]``: ``labels``, ``values`` (definition 6) and ``mean`` over the
      pairs; ``chance_overlap``: that of random sets of selectable heads
    - ``union[length]``: the tasks' best heads united: ``size``, ``deepest_layer``, ``by_layer`` (number in each layer)
    - ``top_heads[task][length]``: up to ``top_n`` of ``head``, ``score``, and ``recall_at_1``, ``spread`` if measured
    - ``comparison``: ``None``, or ``model`` and ``overlap[task][length]`` with the table given as ``compare``

    Raises:
        HeadSetError: too few heads can be selected, or ``compare`` has another head grid.
    """
    lengths = table.context_lengths
    best = {(task, length): HeadSet.of_tasks(table, [task], length, share=share) for task, length in table}
    comparison = None
    if compare is not None:
        overlaps = model_overlap(table, compare, share)
        shared = _by_task({condition: round(value, _DECIMALS) for condition, value in overlaps.items()})
        comparison = {"model": compare.model_id, "overlap": shared}
    return {
        "model": table.model_id,
        "source": table.first.source,
        "n_layers": table.n_layers,
        "n_heads": table.n_heads,
        "selectable_layers": None if table.selectable_layers is None else list(table.selectable_layers),
        "invalid_heads": [str(head) for head in table.invalid_heads],
        "tasks": list(table.tasks),
        "context_lengths": list(lengths),
        "share": share,
        "heads_per_task": len(next(iter(best.values()))),
        "sparsity": _sparsities({condition: scores.values for condition, scores in table.items()}),
        "sparsity_as_given": _sparsities({condition: scores.as_given() for condition, scores in table.items()}),
        "chance_overlap": round(chance_overlap(table, share), _DECIMALS),
        "task_overlap": {str(length): _matrix(task_overlap(table, length, share)) for length in lengths},
        "length_overlap": {task: _matrix(length_overlap(table, task, share)) for task in table.tasks},
        "union": {str(length): _union(table, length, share) for length in lengths},
        "top_heads": _by_task({one: _best(scores, best[one].heads[:top_n]) for one, scores in table.items()}),
        "comparison": comparison,
    }


def _by_task(values: Mapping[tuple[str, int], Any]) -> dict[str, dict[str, Any]]:
    """Values per task and length, as JSON has them."""
    found: dict[str, dict[str, Any]] = {}
    for (task, length), value in values.items():
        found.setdefault(task, {})[str(length)] = value
    return found


def _sparsities(values: Mapping[tuple[str, int], FloatArray]) -> dict[str, dict[str, float | None]]:
    shares = {one: round(sparsity(own), _DECIMALS) if (own > 0).any() else None for one, own in values.items()}
    found = _by_task(shares)
    for row in found.values():
        known = [value for value in row.values() if value is not None]
        row["mean"] = round(float(np.mean(known)), _DECIMALS) if known else None
    return found


def _matrix(overlaps: OverlapMatrix) -> dict[str, Any]:
    return {
        "labels": list(overlaps.labels),
        "values": overlaps.values.round(_DECIMALS).tolist(),
        "mean": round(overlaps.off_diagonal_mean(), _DECIMALS),
    }


def _union(table: HeadScoresTable, length: int, share: float) -> dict[str, Any]:
    tasks = [task for task, scored in table if scored == length]
    heads = HeadSet.of_tasks(table, tasks, length, share=share)
    return {"size": len(heads), "deepest_layer": heads.deepest_layer, "by_layer": layer_spread(heads).tolist()}


def _best(scores: HeadScores, heads: Iterable[HeadId]) -> list[dict[str, Any]]:
    """Heads with everything that was measured of each."""
    extras = {"recall_at_1": scores.recall_at_1, "spread": scores.spread}
    rows: list[dict[str, Any]] = []
    for head in heads:
        rows.append({"head": str(head), "score": round(scores[head], _DECIMALS)})
        for name, values in extras.items():
            if values is not None and np.isfinite(values[head]):
                rows[-1][name] = round(float(values[head]), _DECIMALS)
    return rows


def length_name(length: int | str) -> str:
    """A context length for people: ``131072`` -> ``128K``, as the paper counts; other numbers as they are."""
    tokens = int(length)
    return f"{tokens // 1024}K" if tokens % 1024 == 0 else f"{tokens:,}"


def head_tables(summary: dict[str, Any]) -> list[Table]:
    """A summary of :func:`head_summary` as tables: sparsity, overlaps, depth, best heads.

    Overlaps between tasks or lengths are left out where there is only one.
    """
    *shorter, last = lengths = [str(length) for length in summary["context_lengths"]]
    chance = [f"Chance: {_percent(summary['chance_overlap'])}"]
    tables = [_sparsity_table(summary, lengths)]
    if len(summary["tasks"]) > 1:
        at = summary["task_overlap"]
        pairs = itertools.combinations(summary["tasks"], 2)
        rows = {
            f"{one} / {other}": {length: _overlap(at[length], one, other) for length in lengths} for one, other in pairs
        }
        title = f"Overlap between tasks, % of each task's best {summary['heads_per_task']} heads"
        tables.append(_percent_table(title, "tasks", lengths, rows, chance))
    if shorter:
        of = summary["length_overlap"]
        rows = {task: {length: _overlap(of[task], length, last) for length in shorter} for task in of}
        title = f"Overlap with the task's best heads at {length_name(last)}, %"
        tables.append(_percent_table(title, "task", shorter, rows))
    tables += [_union_table(summary), _top_table(summary, last)]
    if summary["comparison"] is not None:
        title = f"Overlap with {summary['comparison']['model']}, %"
        tables.append(_percent_table(title, "task", lengths, summary["comparison"]["overlap"], chance))
    return tables


def _percent(value: float | None) -> str:
    return _MISSING if value is None else f"{100 * value:.1f}"


def _overlap(matrix: dict[str, Any], one: str, other: str) -> float | None:
    """One overlap of a summary's matrix, ``None`` where one of the two was not scored."""
    if not {one, other} <= set(matrix["labels"]):
        return None
    value: float = matrix["values"][matrix["labels"].index(one)][matrix["labels"].index(other)]
    return value


def _percent_table(
    title: str,
    name: str,
    columns: Sequence[str],
    rows: Mapping[str, Mapping[str, float | None]],
    notes: Sequence[str] = (),
) -> Table:
    """Shares in percent: one row each, one column per context length."""
    shown = [(label, *(_percent(shares.get(column)) for column in columns)) for label, shares in rows.items()]
    names = (length_name(column) if column.isdigit() else column for column in columns)
    return Table.of(title, (name, *names), shown, notes=notes)


def _sparsity_table(summary: dict[str, Any], lengths: Sequence[str]) -> Table:
    notes = []
    if summary["invalid_heads"]:
        as_given = ", ".join(f"{task} {_percent(row['mean'])}" for task, row in summary["sparsity_as_given"].items())
        notes.append(f"Impossible scores left out: {', '.join(summary['invalid_heads'])}. With them, mean: {as_given}.")
    if summary["selectable_layers"] is not None:
        layers = ", ".join(map(str, summary["selectable_layers"]))
        notes.append(f"Heads below are selected from the layers with global attention: {layers}.")
    size = f"{summary['n_layers']} x {summary['n_heads']}"
    title = f"{summary['model']}: heads with half of the positive score mass, % of all {size}"
    return _percent_table(title, "task", [*lengths, "mean"], summary["sparsity"], notes)


def _union_table(summary: dict[str, Any]) -> Table:
    ends = sorted({round(summary["n_layers"] * part / 3) for part in range(4)})
    thirds = list(itertools.pairwise(ends))
    rows = []
    for length, union in summary["union"].items():
        counts = [str(sum(union["by_layer"][start:stop])) for start, stop in thirds]
        rows.append((length_name(length), str(union["size"]), *counts, str(union["deepest_layer"])))
    columns = ("context length", "heads", *(f"layers {start}–{stop - 1}" for start, stop in thirds), "deepest layer")
    title = f"The tasks' best heads united, {_percent(summary['share'])} % of all heads from each"
    return Table.of(title, columns, rows)


def _top_table(summary: dict[str, Any], last: str) -> Table:
    columns = {task: heads[last] for task, heads in summary["top_heads"].items() if last in heads}
    rows = [
        (str(rank), *("" if head is None else f"{head['head']}  {head['score']:.3f}" for head in heads))
        for rank, heads in enumerate(itertools.zip_longest(*columns.values()), start=1)
    ]
    return Table.of(f"Best heads at {length_name(last)} (layer-head, score)", ("rank", *columns), rows)
