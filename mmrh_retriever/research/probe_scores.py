"""What one probe gave, and the same as a line of a journal."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from mmrh_retriever.errors import DataError
from mmrh_retriever.files import FileModel
from mmrh_retriever.types import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class ProbeScores:
    """What one probe gave.

    ``scores`` is ``(layers, heads)`` float32: each head's null-calibrated attention from the question to the evidence,
    in [-1, 1], NaN in layers that were not measured. ``hits`` is ``(layers, heads)`` bool: whether the head by itself
    ranks an item with evidence before all others. ``tokens`` is the length of the context in the prompt.
    """

    name: str
    fingerprint: str
    task: str
    context_length: int
    depth: float
    tokens: int
    scores: FloatArray
    hits: npt.NDArray[np.bool_]


class ProbeRow(FileModel):
    """The same for a journal: ``scores`` and ``hits`` as base64 of little-endian float32 and of bytes."""

    name: str
    fingerprint: str
    task: str
    context_length: Annotated[int, Field(ge=1)]
    depth: Annotated[float, Field(ge=0.0, le=1.0)]
    tokens: Annotated[int, Field(ge=1)]
    n_layers: Annotated[int, Field(ge=1)]
    scores: str
    hits: str

    @classmethod
    def of(cls, found: ProbeScores) -> ProbeRow:
        """A probe's scores as a line."""
        return cls(
            name=found.name,
            fingerprint=found.fingerprint,
            task=found.task,
            context_length=found.context_length,
            depth=found.depth,
            tokens=found.tokens,
            n_layers=len(found.scores),
            scores=base64.b64encode(found.scores.astype("<f4").tobytes()).decode(),
            hits=base64.b64encode(found.hits.astype(np.uint8).tobytes()).decode(),
        )

    def scores_of(self) -> ProbeScores:
        """A line as a probe's scores.

        Raises:
            DataError: the line is damaged.
        """
        try:
            scores = np.frombuffer(base64.b64decode(self.scores, validate=True), dtype="<f4")
            hits = np.frombuffer(base64.b64decode(self.hits, validate=True), dtype=np.uint8)
            shape = (self.n_layers, hits.size // self.n_layers)
            return ProbeScores(
                self.name,
                self.fingerprint,
                self.task,
                self.context_length,
                self.depth,
                self.tokens,
                scores.astype(np.float32).reshape(shape),
                hits.astype(np.bool_).reshape(shape),
            )
        except ValueError as error:
            raise DataError(
                f"The journal's line of the probe {self.name!r} is damaged ({error}). Delete the journal and run again."
            ) from error
