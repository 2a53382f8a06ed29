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


def _grid(given: Any, kind: str) -> npt.NDArray[Any]:
    """``(layers, heads)`` from an array, or from what :func:`_packed` made of one.

    Raises:
        ValueError: damaged texts, or layers with different numbers of heads.
    """
    if isinstance(given, np.ndarray):
        return given
    if not isinstance(given, list) or not all(isinstance(layer, str) for layer in given):
        raise ValueError("expected a text per layer")
    return np.stack([np.frombuffer(base64.b64decode(layer, validate=True), dtype=kind) for layer in given])


def _floats(given: Any) -> FloatArray:
    return _grid(given, "<f4").astype(np.float32)


def _truths(given: Any) -> npt.NDArray[np.bool_]:
    return _grid(given, "u1").astype(np.bool_)


class ProbeScores(FileModel):
    """What one probe gave; also a line of a detection run's journal.

    Attributes:
        name: the probe's name.
        fingerprint: the probe's fingerprint.
        task: the probe's task.
        context_length: the length, in tokens, that the probe counts for.
        depth: the depth of its needle.
        tokens: the length of the context in the prompt.
        scores: ``(layers, heads)`` float32: each head's null-calibrated attention from the question to the evidence,
            in [-1, 1]; NaN in layers that were not measured.
        hits: ``(layers, heads)`` bool: whether the head by itself ranks an item with evidence before all others.
    """

    name: str
    fingerprint: str
    task: str
    context_length: Annotated[int, Field(ge=1)]
    depth: Annotated[float, Field(ge=0.0, le=1.0)]
    tokens: Annotated[int, Field(ge=1)]
    scores: Annotated[FloatArray, PlainValidator(_floats), PlainSerializer(_packed)]
    hits: Annotated[npt.NDArray[np.bool_], PlainValidator(_truths), PlainSerializer(_packed)]
