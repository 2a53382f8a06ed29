"""The files of head scores and head sets: their schemas, and the conversions between rows in JSON and matrices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from mmrh_retriever import files
from mmrh_retriever.errors import DataError, HeadSetError
from mmrh_retriever.files import FileModel, Finite
from mmrh_retriever.types import FloatArray

SCORES_FORMAT = "mmrh-head-scores"
SET_FORMAT = "mmrh-head-set"

Count = Annotated[int, Field(ge=1)]
Matrix = list[list[Finite | None]]
"""One row per layer, one column per query head; ``null`` where nothing was measured."""


class ScoresEntry(FileModel):
    """One condition of a scores file: a task at one context length, in tokens."""

    task: Annotated[str, Field(min_length=1)]
    context_length: Count
    values: Matrix
    source: str = ""
    n_examples: Count | None = None
    spread: Matrix | None = None
    recall_at_1: Matrix | None = None
    invalid: dict[str, Finite] = Field(default_factory=dict)


class ScoresFile(FileModel):
    """This package's own scores file: one model, any number of conditions."""

    format: Literal["mmrh-head-scores"]
    version: Literal[1]
    model: Annotated[str, Field(min_length=1)]
    n_layers: Count
    n_heads: Count
    selectable_layers: list[int] | None = None
    scores: Annotated[list[ScoresEntry], Field(min_length=1)]


class ReleasedScoresFile(FileModel):
    """The scores file of the paper's release: ``scores[task][length]`` is a layers x heads matrix."""

    model: Annotated[str, Field(min_length=1)]
    n_layers: Count
    n_heads: Count
    scores: Annotated[dict[str, Annotated[dict[str, Matrix], Field(min_length=1)]], Field(min_length=1)]


class SetFile(FileModel):
    """A head set file: heads as ``"layer-head"``, best first."""

    format: Literal["mmrh-head-set"]
    version: Literal[1]
    heads: Annotated[list[str], Field(min_length=1)]
    scores: list[Finite] | None = None
    model: str | None = None
    n_layers: Count | None = None
    n_heads: Count | None = None
    tasks: list[str] = Field(default_factory=list)
    context_length: Count | None = None
    source: str = ""

    def details(self) -> dict[str, Any]:
        """Everything but the heads, by the names that :class:`~mmrh_retriever.heads.sets.HeadSet` has for it."""
        return self.model_dump(exclude={"format", "version", "heads", "model"}) | {"model_id": self.model}


def read_set(path: Path) -> SetFile:
    """Read a head set file.

    Raises:
        DataError: missing, not JSON, or not of this format.
    """
    text = files.read_text(path, what="head set")
    if files.format_of(text, where=str(path), what="head set") != SET_FORMAT:
        raise DataError(
            f"{path}: not a head set file. Expected the format {SET_FORMAT!r}; a scores file is read "
            "by HeadScoresTable.load() and gives a set by HeadSet.of_tasks()."
        )
    return files.parse_as(SetFile, text, where=str(path), what="head set")


def read_scores(path: Path) -> ScoresFile | ReleasedScoresFile:
    """Read a scores file: this package's own, or one of the paper's release.

    Raises:
        DataError: missing, not JSON, or of another format.
    """
    what = "file of head scores"
    text = files.read_text(path, what=what)
    declared = files.format_of(text, where=str(path), what=what)
    if declared is None:
        return files.parse_as(ReleasedScoresFile, text, where=str(path), what=what)
    if declared != SCORES_FORMAT:
        raise DataError(f"{path}: has the format {declared!r}. Expected {SCORES_FORMAT!r} or a released scores file.")
    return files.parse_as(ScoresFile, text, where=str(path), what=what)


def as_matrix(
    rows: Sequence[Sequence[float | None]], n_layers: int, n_heads: int, what: str
) -> npt.NDArray[np.float64]:
    """The rows of a file as a matrix, ``(n_layers, n_heads)``, with NaN for ``null``.

    Raises:
        HeadSetError: the rows do not have the model's size, which the same file declares; ``what`` names them.
    """
    widths = {len(row) for row in rows}
    if len(rows) != n_layers or widths != {n_heads}:
        raise HeadSetError(
            f"{what} has {len(rows)} rows of {', '.join(map(str, sorted(widths)))} values. Expected {n_layers} "
            f"layers x {n_heads} heads, as the file declares."
        )
    return np.array(rows, dtype=np.float64)


def as_rows(matrix: FloatArray) -> Matrix:
    """A matrix for JSON: ``null`` for NaN, and the shortest decimals that give the same float32 back."""
    return [[None if np.isnan(value) else float(str(value)) for value in row] for row in matrix]
