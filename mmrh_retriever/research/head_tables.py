"""What a model's head scores say: a report as plain data, and the same as tables for a terminal.

Definitions follow "Can Retrieval Heads See Images?", Li et al. 2026, arXiv 2605.27243. Pictures of the same
are in :mod:`mmrh_retriever.research.head_plots`.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

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
from mmrh_retriever.types import FloatArray

_DECIMALS = 6
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
    """What a source tells of a model's heads: scores, or a bare head set (a file, a folder with one, ``bundled``).

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


def head_set_report(heads: HeadSet) -> dict[str, Any]:
    """What a bare head set says, ready for ``json.dumps``: no scores of other heads, so no shares and overlaps."""
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


def head_set_tables(report: dict[str, Any]) -> list[RenderableType]:
    """A report of :func:`head_set_report` for a terminal."""
    scores = report["scores"] or [None] * report["size"]
    table = _grid("rank", ["head", "score"])
    for place, (head, score) in enumerate(zip(report["heads"], scores, strict=True), start=1):
        table.add_row(str(place), head, "–" if score is None else f"{score:.3f}")
    size = "" if report["n_layers"] is None else f" of {report['n_layers']} x {report['n_heads']}"
    notes = [report["source"]] if report["source"] else []
    if report["context_length"]:
        notes.append(f"Tasks: {', '.join(report['tasks']) or 'not told'}, at {report['context_length']:,} tokens.")
    return [_titled(f"{report['model'] or 'Head set'}: {report['size']} heads{size} (layer-head)", table, notes)]


def head_report(
    table: HeadScoresTable,
    *,
    share: float = PAPER_SHARE,
    top_n: int = 10,
    compare: HeadScoresTable | None = None,
) -> dict[str, Any]:
    """Everything that can be said of a model's heads without the model, ready for ``json.dumps``.

    Keys, all always there (lengths are strings, as JSON needs):

    - ``model``, ``source``, ``n_layers``, ``n_heads`` (a layer), ``selectable_layers`` (``None``: all),
      ``invalid_heads`` (an impossible score under some condition, never selected), ``tasks``,
      ``context_lengths``
    - ``share`` and ``heads_per_task``: the best heads that the rest speaks of
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
    """Sparsity, or ``None`` for scores among which none is positive (the report says so, and goes on)."""
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


def report_tables(report: dict[str, Any]) -> list[RenderableType]:
    """A report of :func:`head_report` as titled rich tables: sparsity, overlaps, depth, best heads.

    Overlaps between tasks or lengths are left out where there is only one.
    """
    tables: list[RenderableType] = [_sparsity_table(report)]
    if len(report["tasks"]) > 1:
        tables.append(_task_overlap_table(report))
    if len(report["context_lengths"]) > 1:
        tables.append(_length_overlap_table(report))
    tables += [_union_table(report), _top_table(report)]
    if report["comparison"] is not None:
        tables.append(_comparison_table(report))
    return tables


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _grid(first: str, columns: list[str]) -> Table:
    table = Table()
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _titled(title: str, table: Table, notes: list[str] | None = None) -> Group:
    """A table under its title; a table's own title would be wrapped to its width."""
    return Group(Text(title, style="bold"), table, *(Text(note, style="dim") for note in notes or []), Text())


def _cell(matrix: dict[str, Any], one: str, other: str) -> str:
    """One overlap of a report's matrix, a dash where one of the two was not scored."""
    labels = matrix["labels"]
    known = one in labels and other in labels
    return _percent(matrix["values"][labels.index(one)][labels.index(other)] if known else None)


def _sparsity_table(report: dict[str, Any]) -> Group:
    lengths = [str(length) for length in report["context_lengths"]]
    table = _grid("task", [*map(length_name, lengths), "mean"])
    for task, row in report["sparsity"].items():
        table.add_row(task, *(_percent(row.get(key)) for key in (*lengths, "mean")))
    notes = []
    if report["invalid_heads"]:
        as_given = ", ".join(f"{task} {_percent(row['mean'])}" for task, row in report["sparsity_as_given"].items())
        notes.append(f"Impossible scores left out: {', '.join(report['invalid_heads'])}. With them, mean: {as_given}.")
    if report["selectable_layers"] is not None:
        layers = ", ".join(map(str, report["selectable_layers"]))
        notes.append(f"Heads below are selected from the layers with global attention: {layers}.")
    size = f"{report['n_layers']} x {report['n_heads']}"
    return _titled(f"{report['model']}: heads with half of the positive score mass, % of all {size}", table, notes)


def _task_overlap_table(report: dict[str, Any]) -> Group:
    table = _grid("tasks", [length_name(length) for length in report["context_lengths"]])
    for one, other in itertools.combinations(report["tasks"], 2):
        table.add_row(f"{one} / {other}", *(_cell(matrix, one, other) for matrix in report["task_overlap"].values()))
    title = f"Overlap between tasks, % of each task's best {report['heads_per_task']} heads"
    return _titled(title, table, [f"Chance: {_percent(report['chance_overlap'])}"])


def _length_overlap_table(report: dict[str, Any]) -> Group:
    *shorter, last = (str(length) for length in report["context_lengths"])
    table = _grid("task", [length_name(length) for length in shorter])
    for task, matrix in report["length_overlap"].items():
        table.add_row(task, *(_cell(matrix, length, last) for length in shorter))
    return _titled(f"Overlap with the task's best heads at {length_name(last)}, %", table)


def _union_table(report: dict[str, Any]) -> Group:
    ends = sorted({round(report["n_layers"] * part / 3) for part in range(4)})
    thirds = list(itertools.pairwise(ends))
    table = _grid("length", ["heads", *(f"layers {start}–{stop - 1}" for start, stop in thirds), "deepest"])
    for length, union in report["union"].items():
        counts = [str(sum(union["by_layer"][start:stop])) for start, stop in thirds]
        table.add_row(length_name(length), str(union["size"]), *counts, str(union["deepest_layer"]))
    return _titled(f"The tasks' best heads united, {_percent(report['share'])} % of all heads from each", table)


def _top_table(report: dict[str, Any]) -> Group:
    last = str(report["context_lengths"][-1])
    columns = {task: rows[last] for task, rows in report["top_heads"].items() if last in rows}
    table = _grid("rank", list(columns))
    for place, heads in enumerate(itertools.zip_longest(*columns.values())):
        cells = ("" if head is None else f"{head['head']}  {head['score']:.3f}" for head in heads)
        table.add_row(str(place + 1), *cells)
    return _titled(f"Best heads at {length_name(last)} (layer-head, score)", table)


def _comparison_table(report: dict[str, Any]) -> Group:
    comparison = report["comparison"]
    lengths = [str(length) for length in report["context_lengths"]]
    table = _grid("task", [length_name(length) for length in lengths])
    for task, row in comparison["overlap"].items():
        table.add_row(task, *(_percent(row.get(length)) for length in lengths))
    return _titled(f"Overlap with {comparison['model']}, %", table, [f"Chance: {_percent(report['chance_overlap'])}"])
