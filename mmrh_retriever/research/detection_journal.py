"""The journal of a detection run: one JSON line a probe, written as it goes, so that a killed run can go on."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from mmrh_retriever.errors import DataError
from mmrh_retriever.files import FileModel, FileModelT
from mmrh_retriever.types import FloatArray

_MISSING = "nothing"


@dataclass(frozen=True, slots=True, eq=False)
class ProbeScores:
    """What one probe gave.

    ``scores`` is ``(layers, heads)`` float32: each head's null-calibrated attention from the question to the evidence,
    in [-1, 1], NaN in layers that were not measured. ``hits`` is ``(layers, heads)`` bool: whether the head by itself
    ranks an item with evidence before all others. ``tokens`` is the length of the context as it was laid.
    """

    name: str
    fingerprint: str
    task: str
    context_length: int
    depth: float
    tokens: int
    scores: FloatArray
    hits: npt.NDArray[np.bool_]


class _Header(FileModel):
    format: Literal["mmrh-detection-journal"]
    version: Literal[1]
    settings: dict[str, Any]


class _Line(FileModel):
    name: str
    fingerprint: str
    task: str
    context_length: Annotated[int, Field(ge=1)]
    depth: Annotated[float, Field(ge=0.0, le=1.0)]
    tokens: Annotated[int, Field(ge=1)]
    scores: str
    hits: str


class Journal:
    """A file of finished probes. Use as a context manager.

    Args:
        path: the file; made where it is missing.
        settings: everything that must be alike for the probes of one run, ready for JSON.
        shape: layers and heads of the model.
        resume: go on with a file that exists.

    Raises:
        DataError: the file exists and ``resume`` is not set; other settings (the differences are shown); a malformed
            line other than the last, which a kill may cut off.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], shape: tuple[int, int], *, resume: bool) -> None:
        self.path = Path(path)
        self.shape = shape
        self.done: dict[str, ProbeScores] = {}
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))
        if self.path.exists() and not resume:
            raise DataError(f"{self.path}: exists already. Resume that run (--resume, resume=True) or delete the file.")
        keep = self._read() if self.path.exists() else 0
        try:
            self._stream = self.path.open("ab")
            self._stream.truncate(keep)
        except OSError as error:
            raise DataError(f"{self.path}: can't be written ({error}). Check that its folder exists.") from error
        if keep == 0:
            self._write({"format": "mmrh-detection-journal", "version": 1, "settings": self._settings})

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def add(self, scores: ProbeScores) -> None:
        """Write one finished probe through to the disk."""
        self.done[scores.name] = scores
        line = {field: getattr(scores, field) for field in _Line.model_fields}
        line["scores"] = base64.b64encode(scores.scores.astype("<f4").tobytes()).decode()
        line["hits"] = base64.b64encode(np.packbits(scores.hits).tobytes()).decode()
        self._write(line)

    def _write(self, line: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def _read(self) -> int:
        """Take in what is there; gives the length in bytes of the whole lines."""
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        for number, text in enumerate(whole.splitlines(), start=1):
            if number == 1:
                self._compare(self._parse(_Header, text, number).settings)
            else:
                self._take(self._parse(_Line, text, number), number)
        return len(whole)

    def _parse(self, kind: type[FileModelT], text: bytes, number: int) -> FileModelT:
        try:
            return kind.model_validate_json(text)
        except ValidationError as error:
            raise self._malformed(number, error) from error

    def _malformed(self, number: int, error: Exception) -> DataError:
        return DataError(
            f"{self.path}, line {number}: not a line of a detection journal ({str(error).splitlines()[0]}). Delete the "
            "file and run again."
        )

    def _take(self, line: _Line, number: int) -> None:
        layers, heads = self.shape
        try:
            scores = np.frombuffer(base64.b64decode(line.scores, validate=True), dtype="<f4")
            packed = np.frombuffer(base64.b64decode(line.hits, validate=True), dtype=np.uint8)
        except ValueError as error:
            raise self._malformed(number, error) from error
        hits = np.unpackbits(packed)[: layers * heads]
        if scores.size != layers * heads or hits.size != layers * heads:
            raise DataError(
                f"{self.path}: the probe {line.name!r} has {scores.size} scores, the model {layers} x {heads} heads. "
                "Delete the file and run again."
            )
        self.done[line.name] = ProbeScores(
            line.name,
            line.fingerprint,
            line.task,
            line.context_length,
            line.depth,
            line.tokens,
            scores.astype(np.float32).reshape(self.shape),
            hits.astype(np.bool_).reshape(self.shape),
        )

    def _compare(self, found: Mapping[str, Any]) -> None:
        apart = list(differences(found, self._settings))
        if apart:
            raise DataError(
                f"{self.path}: was begun with other settings; a run can't be mixed. {'; '.join(apart)}. Give the "
                "same settings again, or write to another file."
            )


def differences(found: Any, wanted: Any, name: str = "") -> Iterator[str]:
    """``a.b: the file has X, this run Y`` for each value that differs."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted}):
            yield from differences(found.get(key, _MISSING), wanted.get(key, _MISSING), f"{name}.{key}".strip("."))
    elif found != wanted:
        yield f"{name}: the file has {found!r}, this run {wanted!r}"
