"""What one probe gave: plain arrays, which a journal keeps as base64."""

from __future__ import annotations

import base64
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, PlainSerializer, PlainValidator

from mmrh_retriever.files import FileModel
from mmrh_retriever.types import FloatArray


def _packed(grid: npt.NDArray[Any]) -> list[str]:
    """A text per layer: base64 of little-endian float32, or of bytes for truth values."""
    kind = "<f4" if grid.dtype.kind == "f" else "u1"
    return [base64.b64encode(layer.astype(kind).tobytes()).decode() for layer in grid]


def _unpacked(stored: str, kind: type[np.generic]) -> PlainValidator:
    """Reads an array, or what :func:`_packed` made of one, as ``(layers, heads)``; ``ValueError`` if it is damaged."""

    def grid(given: Any) -> npt.NDArray[Any]:
        if isinstance(given, np.ndarray):
            return given.astype(kind)
        if not isinstance(given, list) or not all(isinstance(layer, str) for layer in given):
            raise ValueError("expected a text per layer")
        layers = [np.frombuffer(base64.b64decode(layer, validate=True), dtype=stored) for layer in given]
        return np.stack(layers).astype(kind)

    return PlainValidator(grid)


class ProbeScores(FileModel):
    """What one probe gave, with the probe's own data; also a line of a detection run's journal.

    ``tokens`` is the length of the context in the prompt. ``scores`` are ``(layers, heads)`` float32: each head's
    null-calibrated attention from the question to the evidence, in [-1, 1]; NaN in layers that were not measured.
    ``hits`` are ``(layers, heads)`` bool: whether the head by itself ranks an item with evidence before all others.
    """

    name: str
    fingerprint: str
    task: str
    context_length: Annotated[int, Field(ge=1)]
    depth: Annotated[float, Field(ge=0.0, le=1.0)]
    tokens: Annotated[int, Field(ge=1)]
    scores: Annotated[FloatArray, _unpacked("<f4", np.float32), PlainSerializer(_packed)]
    hits: Annotated[npt.NDArray[np.bool_], _unpacked("u1", np.bool_), PlainSerializer(_packed)]
