"""Attention heads: their names and their measured scores.

Definitions follow "Can Retrieval Heads See Images?", Li et al. 2026, arXiv 2605.27243 (*the paper*).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mmrh_retriever import files
from mmrh_retriever.errors import HeadSetError
from mmrh_retriever.heads import file_formats as formats
from mmrh_retriever.types import FloatArray

_TOLERANCE = 1e-4  # how far past -1 or 1 rounding may carry a score that is bounded by them
_MATRICES = ("values", "spread", "recall_at_1")
_SHOWN_HEADS = 8
_HEAD_TEXT = re.compile(r"([0-9]{1,6})-([0-9]{1,6})")


class HeadId(NamedTuple):
    """One query head: its decoder layer and its index in that layer, both from 0. Text form: ``"21-10"``."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"{self.layer}-{self.head}"

    @classmethod
    def parse(cls, text: str) -> HeadId:
        """Read ``"21-10"``: layer 21, query head 10.

        Raises:
            HeadSetError: anything else.
        """
        match = _HEAD_TEXT.fullmatch(text.strip())
        if match is None:
            raise HeadSetError(
                f"{text!r} does not name a head. Expected 'layer-head', both counted from 0, such as '21-10'."
            )
        return cls(int(match[1]), int(match[2]))


def listed(heads: Iterable[HeadId]) -> str:
    """Heads for a message, cut short when there are many."""
    names = [str(head) for head in heads]
    more = f" and {len(names) - _SHOWN_HEADS} more" if len(names) > _SHOWN_HEADS else ""
    return ", ".join(names[:_SHOWN_HEADS]) + more


def _matrix(values: npt.ArrayLike, what: str, *, low: float, high: float) -> FloatArray:
    """A read-only float32 copy of a layers x heads matrix whose finite values lie in ``[low, high]``."""
    try:
        with np.errstate(over="ignore"):  # what is too large for float32 is refused below, as infinite
            matrix = np.array(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise HeadSetError(
            f"The {what} are not a matrix of numbers ({error}). Expected one row per layer, equally long."
        ) from error
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise HeadSetError(f"The {what} have shape {matrix.shape}. Expected (layers, query heads), both at least 1.")
    wrong = np.isinf(matrix) | (matrix < low - _TOLERANCE) | (matrix > high + _TOLERANCE)
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
    null-calibrated retrieval score (definitions 1 to 3 of the paper): a difference of two attention masses, so it
    lies in [-1, 1]. NaN stands where a head was not measured, or where the score is impossible, as some of the
    release are: Qwen2.5-VL-7B has scores above 1 and below -1 in layers 27 and 0, from attention probabilities
    formed in bfloat16. Such heads are never selected; ``invalid`` keeps their scores as the file gave them.

    ``selectable_layers`` names the layers whose heads may be selected, ``None`` for all: a head with a sliding window
    can't see distant evidence (definition 8). ``spread`` is each head's standard deviation over the examples,
    ``recall_at_1`` the share of examples (0 to 1) in which the head alone ranks the evidence first; both are shaped
    like ``values``.

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
            if (extra := getattr(self, name)) is None:
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
        impossible = np.abs(matrix) > 1.0 + _TOLERANCE
        invalid = tuple((HeadId(int(i), int(j)), float(matrix[i, j])) for i, j in np.argwhere(impossible))
        matrix[impossible] = np.nan
        return cls(matrix, model_id, task, context_length, source, invalid=invalid, selectable_layers=selectable_layers)

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
        """The score of one head, NaN where there is none."""
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

    Immutable. ``tasks`` are in the order given, ``context_lengths`` (in tokens) ascending. ``invalid_heads`` have an
    impossible score under at least one condition. ``first`` is the first condition's scores; its ``model_id``,
    ``n_layers``, ``n_heads`` and ``selectable_layers`` are those of all, and of the table.

    Raises:
        HeadSetError: no scores, one condition twice, or scores of different models or sizes.
    """

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
        self.tasks: Final = tuple(dict.fromkeys(scores.task for scores in given))
        given.sort(key=lambda scores: (self.tasks.index(scores.task), scores.context_length))
        self._entries: Final = {(scores.task, scores.context_length): scores for scores in given}
        if len(self._entries) < len(given):
            raise HeadSetError("A condition (task and context length) stands in the table twice.")
        self.first: Final = given[0]
        self.model_id: Final = first.model_id
        self.n_layers: Final = first.n_layers
        self.n_heads: Final = first.n_heads
        self.selectable_layers: Final = first.selectable_layers
        self.context_lengths: Final = tuple(sorted({scores.context_length for scores in given}))
        self.invalid_heads: Final = tuple(sorted({head for scores in given for head in scores.invalid_heads}))

    def __getitem__(self, condition: tuple[str, int]) -> HeadScores:
        return self._entries[condition]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"HeadScoresTable({self.model_id}, {list(self)})"

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
        content = formats.read_as(path, formats.SCORES_FORMATS, "file of head scores")
        try:
            if isinstance(content, formats.ReleasedScoresFile):
                return cls.from_released(content, source="released scores of arXiv 2605.27243")
            return cls(_scores_of(entry, content) for entry in content.scores)
        except HeadSetError as error:
            raise HeadSetError(f"{path}: {error}") from error

    @classmethod
    def from_released(
        cls, model: formats.ReleasedScoresFile | formats.PublishedModelEntry, *, source: str, scale: int = 1
    ) -> HeadScoresTable:
        """The scores of a release, as its file gives them: rows of values in units of ``1 / scale``."""
        entries = []
        for task, lengths in model.scores.items():
            for length, rows in lengths.items():
                if not re.fullmatch(r"[1-9][0-9]{0,8}", length):
                    raise HeadSetError(f"scores.{task} has the key {length!r}. Expected a context length in tokens.")
                matrix = formats.as_matrix(rows, model, f"scores.{task}.{length}") / scale
                entries.append(
                    HeadScores.from_released(
                        matrix, model_id=model.model, task=task, context_length=int(length), source=source,
                        selectable_layers=model.selectable_layers,
                    )
                )  # fmt: skip
        return cls(entries)

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
            selectable_layers=self.selectable_layers,
            scores=[formats.ScoresEntry.model_validate(scores, from_attributes=True) for scores in self.values()],
        )
        files.write_json(Path(path), content, indent=None)


def _scores_of(entry: formats.ScoresEntry, file: formats.ScoresFile) -> HeadScores:
    details = entry.model_dump(exclude={*_MATRICES, "invalid"})
    for name in _MATRICES:
        if (rows := getattr(entry, name)) is not None:
            details[name] = formats.as_matrix(rows, file, f"{entry.task} at {entry.context_length}: {name}")
    invalid = tuple((HeadId.parse(head), score) for head, score in entry.invalid.items())
    return HeadScores(model_id=file.model, invalid=invalid, selectable_layers=file.selectable_layers, **details)
