"""The files of head scores and head sets: their schemas, and matrices as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, Field

from mmrh_retriever import files
from mmrh_retriever.errors import DataError, HeadSetError
from mmrh_retriever.files import FileModel, Finite

Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]


def _as_rows(matrix: Any) -> Any:
    """An array for JSON: ``null`` for NaN, and the shortest decimals that give the same float32 back."""
    if not isinstance(matrix, np.ndarray):
        return matrix
    return [[None if np.isnan(value) else float(str(value)) for value in row] for row in matrix]


def _as_object(pairs: Any) -> Any:
    """Pairs of head and score for JSON."""
    return {str(head): score for head, score in pairs} if isinstance(pairs, tuple) else pairs


Matrix = Annotated[list[list[Finite | None]], BeforeValidator(_as_rows)]
"""One row per layer, one column per query head; ``null`` where nothing was measured."""


class ScoresEntry(FileModel):
    """One condition of a scores file: a task at one context length, in tokens."""

    task: Name
    context_length: Count
    values: Matrix
    source: str = ""
    n_examples: Count | None = None
    spread: Matrix | None = None
    recall_at_1: Matrix | None = None
    invalid: Annotated[dict[str, Finite], BeforeValidator(_as_object)] = Field(default_factory=dict)


class ScoresFile(FileModel):
    """This package's own scores file: one model, any number of conditions."""

    format: Literal["mmrh-head-scores"]
    version: Literal[1]
    model: Name
    n_layers: Count
    n_heads: Count
    selectable_layers: tuple[int, ...] | None = None
    scores: Annotated[list[ScoresEntry], Field(min_length=1)]


class ReleasedScoresFile(FileModel):
    """The scores file of the paper's release: ``scores[task][length]`` is a layers x heads matrix."""

    model: Name
    n_layers: Count
    n_heads: Count
    scores: Annotated[dict[str, Annotated[dict[str, Matrix], Field(min_length=1)]], Field(min_length=1)]
    selectable_layers: ClassVar[None] = None  # the release does not name them


class PublishedModelEntry(FileModel):
    """One model of the shipped file of released scores; these are whole numbers, in units of ``1 / scale``."""

    model: Name
    model_type: Name
    hidden_size: Count
    n_layers: Count
    n_heads: Count
    selectable_layers: tuple[int, ...] | None
    scores: dict[str, dict[str, list[list[int]]]]


class PublishedFile(FileModel):
    """The shipped file of released scores."""

    format: Literal["mmrh-published-heads"]
    version: Literal[1]
    source: Name
    note: str
    scale: Count
    models: Annotated[list[PublishedModelEntry], Field(min_length=1)]


class SetFile(FileModel):
    """A head set file: heads as ``"layer-head"``, best first."""

    format: Literal["mmrh-head-set"]
    version: Literal[1]
    heads: Annotated[tuple[str, ...], Field(min_length=1)]
    scores: tuple[Finite, ...] | None = None
    model: str | None = None
    n_layers: Count | None = None
    n_heads: Count | None = None
    tasks: tuple[str, ...] = ()
    context_length: Count | None = None
    source: str = ""


SET_FORMAT = "mmrh-head-set"
SET_FORMATS: dict[str | None, type[SetFile]] = {SET_FORMAT: SetFile}
SCORES_FORMATS: dict[str | None, type[ScoresFile] | type[ReleasedScoresFile]] = {
    "mmrh-head-scores": ScoresFile,
    None: ReleasedScoresFile,
}


def read_as(path: Path, formats: Mapping[str | None, type[files.Model]], what: str) -> files.Model:
    """Read a file of one of these formats; ``what`` is what the caller reads, for messages."""
    text = files.read_text(path, what=what)
    declared = files.format_of(text, where=str(path), what=what)
    if declared not in formats:
        raise DataError(
            f"{path}: not a {what}: its format is {declared!r}. Expected {' or '.join(map(repr, formats))}. Read head "
            "sets by HeadSet.load(), scores by HeadScoresTable.load(), and select from scores by HeadSet.of_tasks()."
        )
    return files.parse_as(formats[declared], text, where=str(path), what=what)


def as_matrix(
    rows: Sequence[Sequence[float | None]], model: ScoresFile | ReleasedScoresFile | PublishedModelEntry, what: str
) -> npt.NDArray[np.float64]:
    """Rows as a matrix, ``(n_layers, n_heads)`` as the file declares, with NaN for ``null``."""
    widths = {len(row) for row in rows}
    if len(rows) != model.n_layers or widths != {model.n_heads}:
        raise HeadSetError(
            f"{what} has {len(rows)} rows of {', '.join(map(str, sorted(widths)))} values. Expected {model.n_layers} "
            f"layers x {model.n_heads} heads, as the file declares."
        )
    return np.array(rows, dtype=np.float64)
