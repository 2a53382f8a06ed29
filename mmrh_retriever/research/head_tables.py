"""What a model's head scores say: a summary as plain data, and the same as tables.

Definitions follow "Can Retrieval Heads See Images?", Li et al. 2026, arXiv 2605.27243. Pictures of the same
are in :mod:`mmrh_retriever.research.head_plots`.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from mmrh_retriever.files import format_of, read_text
from mmrh_retriever.heads.file_formats import SET_FORMAT
from mmrh_retriever.heads.published import published_head_scores
from mmrh_retriever.heads.sets import PAPER_SHARE, HeadScoresTable, HeadSet
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
_SCORE_FILES = (".json", ".gz")


def scores_from(source: str | Path) -> HeadScoresTable:
    """Head scores from a file, or those published for a model id or name.

    Raises:
        DataError: the file is missing or malformed.
        HeadSetError: no such file, and nothing published under this name.
    """
    path = Path(source)
    if path.is_file() or path.suffix in _SCORE_FILES:
        return HeadScoresTable.load(path)
    return published_head_scores(str(source))


def heads_from(source: str | Path) -> HeadScoresTable | HeadSet:
    """A model's head scores, or a bare head set: from a file, a folder with one, or by the name ``bundled``.

    Raises:
        DataError: the file is missing or malformed.
        HeadSetError: no such file, and nothing published under this name.
    """
    path = BUNDLED_FOLDER if str(source) == BUNDLED else Path(source)
    path = path / HEADS_FILE if (path / HEADS_FILE).is_file() else path
    what = "head set or file of head scores"
    if path.is_file() and format_of(read_text(path, what=what), where=str(path), what=what) == SET_FORMAT:
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
        "by_layer": [int(count) for count in layer_spread(heads)] if heads.n_layers is not None else None,
        "heads": [str(head) for head in heads],
        "scores": None if heads.scores is None else [round(score, _DECIMALS) for score in heads.scores],
    }


def head_set_tables(summary: dict[str, Any]) -> list[Table]:
    """A summary of :func:`head_set_summary` as a table."""
    scores = summary["scores"] or [None] * summary["size"]
    rows = [
        (str(rank), head, _MISSING if score is None else f"{score:.3f}")
        for rank, (head, score) in enumerate(zip(summary["heads"], scores, strict=True), start=1)
    ]
    size = "" if summary["n_layers"] is None else f" of {summary['n_layers']} x {summary['n_heads']}"
    title = f"{summary['model'] or 'Head set'}: {summary['size']} heads{size} (layer-head)"
    notes = [summary["source"]] if summary["source"] else []
    if summary["context_length"]:
        notes.append(f"Tasks: {', '.join(summary['tasks']) or 'unknown'}, at {summary['context_length']:,} tokens.")
    return [Table.of(title, ("rank", "head", "score"), rows, notes=notes)]


def head_summary(
    table: HeadScoresTable,
    *,
    share: float = PAPER_SHARE,
    top_n: int = 10,
    compare: HeadScoresTable | None = None,
) -> dict[str, Any]:
    """Everything that can be said of a model's heads without the model, ready for JSON.

    Keys, all always there (lengths are strings, as JSON needs):

    - ``model``, ``source``, ``n_layers``, ``n_heads`` (per layer), ``selectable_layers`` (``None``: all),
      ``invalid_heads`` (an impossible score under some condition, never selected), ``tasks``,
      ``context_lengths``
    - ``share`` and ``heads_per_task``: how many of the best heads the following is about
    - ``sparsity[task][length or "mean"]``: the share of heads with half of the positive score mass
      (definition 5), ``None`` where no head scores above 0; ``sparsity_as_given``: the same with impossible
      scores counted in, as published figures have it
    - ``task_overlap[length]``, ``length_overlap[task]``: ``labels``, ``values`` (definition 6) and ``mean``
      over the pairs; ``chance_overlap`` is what random sets of selectable heads would have
    - ``union[length]``: the tasks' best heads united: ``size``, ``deepest_layer``, and ``by_layer``, the
      number in each layer
    - ``top_heads[task][length]``: up to ``top_n`` of ``head``, ``score``, and ``recall_at_1`` and ``spread``
      where they were measured
    - ``comparison``: ``None``, or ``model`` and ``overlap[task][length]`` with the table given as ``compare``

    Raises:
        HeadSetError: too few heads can be selected, or ``compare`` has another head grid.
    """
    lengths = table.context_lengths
    unions = {length: _union_at(table, length, share) for length in lengths}
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
        "heads_per_task": len(HeadSet.top(table.first, share, exclude=table.invalid_heads)),
        "sparsity": _sparsities(table, as_given=False),
        "sparsity_as_given": _sparsities(table, as_given=True),
        "chance_overlap": round(chance_overlap(table, share), _DECIMALS),
        "task_overlap": {str(length): _matrix(task_overlap(table, length, share)) for length in lengths},
        "length_overlap": {task: _matrix(length_overlap(table, task, share)) for task in table.tasks},
        "union": {
            str(length): {
                "size": len(heads),
                "deepest_layer": heads.deepest_layer,
                "by_layer": [int(count) for count in layer_spread(heads)],
            }
            for length, heads in unions.items()
        },
        "top_heads": _top_heads(table, share, top_n),
        "comparison": None if compare is None else _comparison(table, compare, share),
    }


def _union_at(table: HeadScoresTable, length: int, share: float) -> HeadSet:
    tasks = [task for task, scored in table if scored == length]
    return HeadSet.of_tasks(table, tasks, length, share=share)


def _share_or_none(values: FloatArray) -> float | None:
    """Sparsity, or ``None`` for scores among which none is positive."""
    return round(sparsity(values), _DECIMALS) if (values > 0).any() else None


def _sparsities(table: HeadScoresTable, *, as_given: bool) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {}
    for (task, length), scores in table.items():
        values = scores.as_given() if as_given else scores.values
        found.setdefault(task, {})[str(length)] = _share_or_none(values)
    for row in found.values():
        known = [value for value in row.values() if value is not None]
        row["mean"] = round(float(np.mean(known)), _DECIMALS) if known else None
    return found


def _matrix(overlaps: OverlapMatrix) -> dict[str, Any]:
    return {
        "labels": list(overlaps.labels),
        "values": [[round(float(value), _DECIMALS) for value in row] for row in overlaps.values],
        "mean": round(overlaps.off_diagonal_mean(), _DECIMALS),
    }


def _top_heads(table: HeadScoresTable, share: float, top_n: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for (task, length), scores in table.items():
        rows = []
        for head in itertools.islice(HeadSet.of_tasks(table, [task], length, share=share), top_n):
            row: dict[str, Any] = {"head": str(head), "score": round(scores[head], _DECIMALS)}
            for name, extra in (("recall_at_1", scores.recall_at_1), ("spread", scores.spread)):
                if extra is not None and np.isfinite(extra[head]):
                    row[name] = round(float(extra[head]), _DECIMALS)
            rows.append(row)
        found.setdefault(task, {})[str(length)] = rows
    return found


def _comparison(table: HeadScoresTable, other: HeadScoresTable, share: float) -> dict[str, Any]:
    overlaps: dict[str, dict[str, float]] = {}
    for (task, length), value in model_overlap(table, other, share).items():
        overlaps.setdefault(task, {})[str(length)] = round(value, _DECIMALS)
    return {"model": other.model_id, "overlap": overlaps}


def length_name(length: int | str) -> str:
    """A context length for people: ``131072`` -> ``128K``, as the paper counts; other numbers as they are."""
    tokens = int(length)
    return f"{tokens // 1024}K" if tokens % 1024 == 0 else f"{tokens:,}"


def head_tables(summary: dict[str, Any]) -> list[Table]:
    """A summary of :func:`head_summary` as tables: sparsity, overlaps, depth, best heads.

    Overlaps between tasks or lengths are left out where there is only one.
    """
    tables = [_sparsity_table(summary)]
    if len(summary["tasks"]) > 1:
        tables.append(_task_overlap_table(summary))
    if len(summary["context_lengths"]) > 1:
        tables.append(_length_overlap_table(summary))
    tables += [_union_table(summary), _top_table(summary)]
    if summary["comparison"] is not None:
        tables.append(_comparison_table(summary))
    return tables


def _percent(value: float | None) -> str:
    return _MISSING if value is None else f"{100 * value:.1f}"


def _cell(matrix: dict[str, Any], one: str, other: str) -> str:
    """One overlap of a summary's matrix, a dash where one of the two was not scored."""
    labels = matrix["labels"]
    known = one in labels and other in labels
    return _percent(matrix["values"][labels.index(one)][labels.index(other)] if known else None)


def _sparsity_table(summary: dict[str, Any]) -> Table:
    lengths = [str(length) for length in summary["context_lengths"]]
    rows = [
        (task, *(_percent(shares.get(key)) for key in (*lengths, "mean")))
        for task, shares in summary["sparsity"].items()
    ]
    notes = []
    if summary["invalid_heads"]:
        as_given = ", ".join(f"{task} {_percent(row['mean'])}" for task, row in summary["sparsity_as_given"].items())
        notes.append(f"Impossible scores left out: {', '.join(summary['invalid_heads'])}. With them, mean: {as_given}.")
    if summary["selectable_layers"] is not None:
        layers = ", ".join(map(str, summary["selectable_layers"]))
        notes.append(f"Heads below are selected from the layers with global attention: {layers}.")
    size = f"{summary['n_layers']} x {summary['n_heads']}"
    title = f"{summary['model']}: heads with half of the positive score mass, % of all {size}"
    return Table.of(title, ("task", *map(length_name, lengths), "mean"), rows, notes=notes)


def _task_overlap_table(summary: dict[str, Any]) -> Table:
    matrices = summary["task_overlap"]
    rows = [
        (f"{one} / {other}", *(_cell(matrix, one, other) for matrix in matrices.values()))
        for one, other in itertools.combinations(summary["tasks"], 2)
    ]
    title = f"Overlap between tasks, % of each task's best {summary['heads_per_task']} heads"
    return Table.of(title, ("tasks", *map(length_name, matrices)), rows, notes=[_chance(summary)])


def _length_overlap_table(summary: dict[str, Any]) -> Table:
    *shorter, last = (str(length) for length in summary["context_lengths"])
    rows = [
        (task, *(_cell(matrix, length, last) for length in shorter))
        for task, matrix in summary["length_overlap"].items()
    ]
    title = f"Overlap with the task's best heads at {length_name(last)}, %"
    return Table.of(title, ("task", *map(length_name, shorter)), rows)


def _union_table(summary: dict[str, Any]) -> Table:
    ends = sorted({round(summary["n_layers"] * part / 3) for part in range(4)})
    thirds = list(itertools.pairwise(ends))
    rows = []
    for length, union in summary["union"].items():
        counts = [str(sum(union["by_layer"][start:stop])) for start, stop in thirds]
        rows.append((length_name(length), str(union["size"]), *counts, str(union["deepest_layer"])))
    columns = ("length", "heads", *(f"layers {start}–{stop - 1}" for start, stop in thirds), "deepest")
    title = f"The tasks' best heads united, {_percent(summary['share'])} % of all heads from each"
    return Table.of(title, columns, rows)


def _top_table(summary: dict[str, Any]) -> Table:
    last = str(summary["context_lengths"][-1])
    columns = {task: heads[last] for task, heads in summary["top_heads"].items() if last in heads}
    rows = [
        (str(rank), *("" if head is None else f"{head['head']}  {head['score']:.3f}" for head in heads))
        for rank, heads in enumerate(itertools.zip_longest(*columns.values()), start=1)
    ]
    return Table.of(f"Best heads at {length_name(last)} (layer-head, score)", ("rank", *columns), rows)


def _comparison_table(summary: dict[str, Any]) -> Table:
    comparison = summary["comparison"]
    lengths = [str(length) for length in summary["context_lengths"]]
    rows = [(task, *(_percent(row.get(length)) for length in lengths)) for task, row in comparison["overlap"].items()]
    title = f"Overlap with {comparison['model']}, %"
    return Table.of(title, ("task", *map(length_name, lengths)), rows, notes=[_chance(summary)])


def _chance(summary: dict[str, Any]) -> str:
    return f"Chance: {_percent(summary['chance_overlap'])}"
