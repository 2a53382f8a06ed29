"""Attention heads: their names and their measured scores. Nothing here needs a model.

Definitions follow "Can Retrieval Heads See Images?", Li et al. 2026, arXiv 2605.27243 (*the paper*).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmrh_retriever import files
from mmrh_retriever.errors import HeadSetError
from mmrh_retriever.heads import file_formats as formats
from mmrh_retriever.heads.head_id import HeadId, listed
from mmrh_retriever.types import FloatArray

__all__ = ["HeadId", "HeadScores", "HeadScoresTable"]

SCORE_TOLERANCE = 1e-4
"""How far past -1 or 1 rounding may carry a score that is bounded by them."""


def _matrix(values: npt.ArrayLike, what: str, *, low: float, high: float) -> FloatArray:
    """A read-only float32 copy of a layers x heads matrix whose finite values lie in ``[low, high]``."""
    try:
        matrix = np.array(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise HeadSetError(
            f"The {what} are not a matrix of numbers ({error}). Expected one row per layer, equally long."
        ) from error
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise HeadSetError(f"The {what} have shape {matrix.shape}. Expected (layers, query heads), both at least 1.")
    wrong = np.isinf(matrix) | (matrix < low - SCORE_TOLERANCE) | (matrix > high + SCORE_TOLERANCE)
    if wrong.any():
        layer, head = (int(i) for i in np.argwhere(wrong)[0])
        raise HeadSetError(
            f"The {what} of head {HeadId(layer, head)} is {float(matrix[layer, head]):g}; expected a value from "
            f"{low:g} to {high:g}, or NaN where nothing was measured. {int(wrong.sum())} heads are affected: "
            "measure again, with the softmax in float32."
        )
    matrix.setflags(write=False)
    return matrix


@dataclass(frozen=True, slots=True, eq=False)
class HeadScores:
    """Detection scores of every head of one model on one task at one context length.

    ``values`` is ``(n_layers, n_heads)`` float32, the mean over the detection examples of the
    null-calibrated retrieval score (definitions 1 to 3 of the paper): a difference of two attention
    masses, so it lies in [-1, 1]. NaN stands where a head was not measured, or where the score is
    impossible. The latter occurs in the paper's release: Qwen2.5-VL-7B has scores above 1 and below -1 in
    layers 27 and 0, from attention probabilities formed in bfloat16. Such heads are never selected;
    ``invalid`` keeps their scores as the file gave them.

    ``selectable_layers`` names the layers whose heads may be selected, ``None`` for all: a head with a
    sliding window can't see distant evidence (definition 8). ``spread`` is each head's standard
    deviation over the examples, ``recall_at_1`` the share of examples (0 to 1) in which the head alone
    ranks the evidence first; both shaped like ``values``.

    Raises:
        HeadSetError: shapes that differ, values out of range, infinite values.
    """

    values: FloatArray
    model_id: str
    task: str
    context_length: int
    source: str = ""
    n_examples: int | None = None
    spread: FloatArray | None = None
    recall_at_1: FloatArray | None = None
    invalid: tuple[tuple[HeadId, float], ...] = ()
    selectable_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _matrix(self.values, "scores", low=-1.0, high=1.0))
        for name, high in (("spread", math.inf), ("recall_at_1", 1.0)):
            extra = getattr(self, name)
            if extra is None:
                continue
            matrix = _matrix(extra, name, low=0.0, high=high)
            if matrix.shape != self.values.shape:
                raise HeadSetError(f"{name} has shape {matrix.shape}, the scores {self.values.shape}; they must agree.")
            object.__setattr__(self, name, matrix)
        if self.context_length < 1:
            raise HeadSetError(f"A context length counts tokens, from 1; got {self.context_length}.")
        measured = [head for head, _ in self.invalid if not self._holds(head) or not np.isnan(self.values[head])]
        if measured:
            raise HeadSetError(f"Heads marked invalid must exist and have no score: {listed(measured)}.")
        if self.selectable_layers is not None:
            layers = tuple(sorted(set(self.selectable_layers)))
            if not layers or layers[0] < 0 or layers[-1] >= self.n_layers:
                raise HeadSetError(f"Selectable layers {layers} do not fit a model of {self.n_layers} layers.")
            object.__setattr__(self, "selectable_layers", layers)

    @classmethod
    def from_released(
        cls,
        values: npt.ArrayLike,
        *,
        model_id: str,
        task: str,
        context_length: int,
        source: str = "",
        selectable_layers: tuple[int, ...] | None = None,
    ) -> HeadScores:
        """Scores as the paper's release holds them: those outside [-1, 1] become NaN and are noted as invalid.

        Raises:
            HeadSetError: not a matrix, or infinite values.
        """
        # Impossible scores are accepted here and only here.
        matrix = np.array(_matrix(values, "released scores", low=-math.inf, high=math.inf))
        impossible = np.abs(matrix) > 1.0 + SCORE_TOLERANCE
        invalid = tuple((HeadId(int(i), int(j)), float(matrix[i, j])) for i, j in np.argwhere(impossible))
        matrix[impossible] = np.nan
        return cls(
            matrix,
            model_id,
            task,
            context_length,
            source=source,
            invalid=invalid,
            selectable_layers=selectable_layers,
        )

    @property
    def n_layers(self) -> int:
        """Decoder layers of the model."""
        return int(self.values.shape[0])

    @property
    def n_heads(self) -> int:
        """Query heads per layer."""
        return int(self.values.shape[1])

    @property
    def invalid_heads(self) -> tuple[HeadId, ...]:
        """Heads whose given score was impossible, by layer and head."""
        return tuple(head for head, _ in self.invalid)

    def __getitem__(self, head: HeadId) -> float:
        """The score of one head, NaN where there is none.

        Raises:
            HeadSetError: the model has no such head.
        """
        if not self._holds(head):
            raise HeadSetError(f"Head {head} is not one of {self.n_layers} layers x {self.n_heads} heads.")
        return float(self.values[head])

    def as_given(self) -> FloatArray:
        """The scores with the impossible ones put back, ``(n_layers, n_heads)``: to reproduce published figures."""
        matrix = np.array(self.values)
        for head, value in self.invalid:
            matrix[head] = value
        return matrix

    def selectable(self, max_layer: int | None = None) -> npt.NDArray[np.bool_]:
        """Which heads may be selected, ``(n_layers, n_heads)``: scored, in a selectable layer, not too deep."""
        mask = np.isfinite(self.values)
        layers = np.arange(self.n_layers)
        if self.selectable_layers is not None:
            mask &= np.isin(layers, self.selectable_layers)[:, None]
        if max_layer is not None:
            mask &= (layers <= max_layer)[:, None]
        return mask

    def _holds(self, head: HeadId) -> bool:
        return 0 <= head[0] < self.n_layers and 0 <= head[1] < self.n_heads


class HeadScoresTable(Mapping[tuple[str, int], HeadScores]):
    """Scores of one model on several tasks and context lengths: ``(task, context length) -> HeadScores``.

    Immutable; tasks in the order given, lengths ascending.

    Raises:
        HeadSetError: no scores, one condition twice, or scores of different models or sizes.
    """

    __slots__ = ("_entries",)

    def __init__(self, entries: Iterable[HeadScores]) -> None:
        given = list(entries)
        if not given:
            raise HeadSetError("A table of head scores needs at least one condition, got none.")
        first = given[0]
        for scores in given:
            if (scores.model_id, scores.values.shape) != (first.model_id, first.values.shape):
                raise HeadSetError(
                    f"One table holds one model: got {first.model_id} of {first.values.shape} and "
                    f"{scores.model_id} of {scores.values.shape} layers x heads."
                )
            if scores.selectable_layers != first.selectable_layers:
                raise HeadSetError("The conditions of a table must agree on the selectable layers.")
        tasks = list(dict.fromkeys(scores.task for scores in given))
        given.sort(key=lambda scores: (tasks.index(scores.task), scores.context_length))
        self._entries = {(scores.task, scores.context_length): scores for scores in given}
        if len(self._entries) < len(given):
            raise HeadSetError("A condition (task and context length) stands in the table twice.")

    def __getitem__(self, condition: tuple[str, int]) -> HeadScores:
        return self._entries[condition]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"HeadScoresTable({self.model_id}, {list(self._entries)})"

    @property
    def first(self) -> HeadScores:
        """The scores of the first condition. Its model, size and selectable layers are those of all."""
        return next(iter(self._entries.values()))

    @property
    def model_id(self) -> str:
        """The model whose heads these are."""
        return self.first.model_id

    @property
    def n_layers(self) -> int:
        """Decoder layers of the model."""
        return self.first.n_layers

    @property
    def n_heads(self) -> int:
        """Query heads per layer."""
        return self.first.n_heads

    @property
    def selectable_layers(self) -> tuple[int, ...] | None:
        """Layers whose heads may be selected, ``None`` for all."""
        return self.first.selectable_layers

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in the order given."""
        return tuple(dict.fromkeys(task for task, _ in self._entries))

    @property
    def context_lengths(self) -> tuple[int, ...]:
        """The context lengths in tokens, ascending."""
        return tuple(sorted({length for _, length in self._entries}))

    @property
    def invalid_heads(self) -> tuple[HeadId, ...]:
        """Heads whose given score is impossible under at least one condition, by layer and head."""
        return tuple(sorted({head for scores in self.values() for head in scores.invalid_heads}))

    def at(self, task: str, context_length: int) -> HeadScores:
        """The scores of one condition.

        Raises:
            HeadSetError: there is no such condition; the message names the tasks and lengths that there are.
        """
        found = self._entries.get((task, context_length))
        if found is None:
            raise HeadSetError(
                f"No scores of {self.model_id} for the task {task!r} at {context_length} tokens. There are "
                f"the tasks {', '.join(self.tasks)} and the lengths {', '.join(map(str, self.context_lengths))}."
            )
        return found

    @classmethod
    def load(cls, path: str | Path) -> HeadScoresTable:
        """Read a scores file: our own format, or that of the paper's release (``.json`` or ``.json.gz``).

        Impossible scores of a release become NaN (see :class:`HeadScores`). In our own format they are an
        error, since nothing impossible is ever measured.

        Raises:
            DataError: missing, not JSON, or of another format.
            HeadSetError: scores that don't fit the model's size, or are out of range.
        """
        path = Path(path)
        content = formats.read_scores(path)
        try:
            if isinstance(content, formats.ScoresFile):
                return cls._from_file(content)
            return cls.from_released(
                content.scores,
                model_id=content.model,
                n_layers=content.n_layers,
                n_heads=content.n_heads,
                source="released scores of arXiv 2605.27243",
            )
        except HeadSetError as error:
            raise HeadSetError(f"{path}: {error}") from error

    @classmethod
    def from_released(
        cls,
        scores: Mapping[str, Mapping[str, Sequence[Sequence[float | None]]]],
        *,
        model_id: str,
        n_layers: int,
        n_heads: int,
        source: str,
        scale: int = 1,
        selectable_layers: tuple[int, ...] | None = None,
    ) -> HeadScoresTable:
        """The scores of a release, ``scores[task][context length]``: rows of values in units of ``1 / scale``.

        Raises:
            HeadSetError: rows that do not fit the model's size, or a context length that is none.
        """
        entries = []
        for task, lengths in scores.items():
            for length, rows in lengths.items():
                if not re.fullmatch(r"[1-9][0-9]{0,8}", length):
                    raise HeadSetError(f"scores.{task} has the key {length!r}. Expected a context length in tokens.")
                entry = HeadScores.from_released(
                    formats.as_matrix(rows, n_layers, n_heads, f"scores.{task}.{length}") / scale,
                    model_id=model_id,
                    task=task,
                    context_length=int(length),
                    source=source,
                    selectable_layers=selectable_layers,
                )
                entries.append(entry)
        return cls(entries)

    @classmethod
    def _from_file(cls, content: formats.ScoresFile) -> HeadScoresTable:
        def matrix(values: formats.Matrix, what: str) -> FloatArray:
            return formats.as_matrix(values, content.n_layers, content.n_heads, what).astype(np.float32)

        return cls(
            HeadScores(
                matrix(entry.values, f"{entry.task} at {entry.context_length}: values"),
                content.model,
                entry.task,
                entry.context_length,
                source=entry.source,
                n_examples=entry.n_examples,
                spread=None if entry.spread is None else matrix(entry.spread, "spread"),
                recall_at_1=None if entry.recall_at_1 is None else matrix(entry.recall_at_1, "recall_at_1"),
                invalid=tuple((HeadId.parse(head), value) for head, value in entry.invalid.items()),
                selectable_layers=None if content.selectable_layers is None else tuple(content.selectable_layers),
            )
            for entry in content.scores
        )

    def save(self, path: str | Path) -> None:
        """Write all conditions as one JSON file, all or nothing; packed when the name ends in ``.gz``.

        Raises:
            DataError: the folder is missing or can't be written.
        """
        content = formats.ScoresFile(
            format="mmrh-head-scores",
            version=1,
            model=self.model_id,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            selectable_layers=None if self.selectable_layers is None else list(self.selectable_layers),
            scores=[
                formats.ScoresEntry(
                    task=scores.task,
                    context_length=scores.context_length,
                    values=formats.as_rows(scores.values),
                    source=scores.source,
                    n_examples=scores.n_examples,
                    spread=None if scores.spread is None else formats.as_rows(scores.spread),
                    recall_at_1=None if scores.recall_at_1 is None else formats.as_rows(scores.recall_at_1),
                    invalid={str(head): value for head, value in scores.invalid},
                )
                for scores in self.values()
            ],
        )
        files.write_json(Path(path), content, indent=None)
