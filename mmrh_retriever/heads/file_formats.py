"""How head scores and head sets lie on disk: JSON checked by pydantic, written atomically."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mmrh_retriever.files import FileModel, Finite

SCORES_FORMAT = "mmrh-head-scores"
SET_FORMAT = "mmrh-head-set"

Count = Annotated[int, Field(ge=1)]
Matrix = list[list[Finite | None]]
"""Rows are layers, columns are query heads; ``null`` where nothing was measured."""


class ScoresEntry(FileModel):
    """One condition of a scores file: a task at one context length."""

    task: Annotated[str, Field(min_length=1)]
    context_length: Count
    values: Matrix
    source: str = ""
    n_examples: Count | None = None
    spread: Matrix | None = None
    recall_at_1: Matrix | None = None
    invalid: dict[str, Finite] = Field(default_factory=dict)


class ScoresFile(FileModel):
    """Our own scores file: one model, any number of conditions."""

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
