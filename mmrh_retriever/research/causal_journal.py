"""The folder of a causal test: settings and answers, kept as they come, so that a killed run can go on.

OUT/settings.json    what was run, checked when a run is resumed
OUT/rows.jsonl       one line an answer, written through at once
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mmrh_retriever.errors import DataError
from mmrh_retriever.files import read_text
from mmrh_retriever.research.causal import CausalRow, save_json
from mmrh_retriever.research.detection_journal import differences

_ROW = TypeAdapter(CausalRow)


class CausalFolder:
    """A causal test's folder; ``rows`` are the answers that it holds, of probes that were finished.

    Args:
        path: the folder; made where it is missing.
        settings: everything that must be alike for one run, ready for JSON.
        answers: how many answers a finished probe has, one a masking. What a kill left of others is dropped.
        resume: go on with what is there.

    Raises:
        DataError: the folder holds a run and ``resume`` is off, or that run had other settings (the differences are
            shown), a malformed line other than the last, or a folder that can't be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, answers: int, resume: bool) -> None:
        self.path = path
        self.rows: list[CausalRow] = []
        known: Any = json.loads(json.dumps(settings))
        file, rows = path / "settings.json", path / "rows.jsonl"
        if file.is_file():
            if not resume:
                raise DataError(
                    f"{path} holds a causal test already. Go on with it (--resume), or choose another folder."
                )
            _check_same(file, known)
            found = list(_read(rows)) if rows.is_file() else []
            count = Counter(row.probe for row in found)
            self.rows = [row for row in found if count[row.probe] == answers]
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{path}: can't be made ({error}). Choose another folder.") from error
        save_json(known, file)

    @property
    def finished(self) -> frozenset[str]:
        """The names of the probes that need no answers any more."""
        return frozenset(row.probe for row in self.rows)

    def keep(self, rows: Iterable[CausalRow]) -> list[CausalRow]:
        """Write answers as they come, behind those that are there; gives all.

        Raises:
            DataError: the file can't be written.
        """
        file = self.path / "rows.jsonl"
        try:
            with file.open("w", encoding="utf-8") as stream:
                stream.writelines(_line(row) for row in self.rows)
                for row in rows:
                    stream.write(_line(row))
                    stream.flush()
                    os.fsync(stream.fileno())
                    self.rows.append(row)
        except OSError as error:
            raise DataError(f"{file}: can't be written ({error}). Check that its folder exists.") from error
        return self.rows


def _line(row: CausalRow) -> str:
    return json.dumps(asdict(row)) + "\n"


def _read(path: Path) -> Iterator[CausalRow]:
    """The rows of a file whose last line a kill may have cut off."""
    lines = read_text(path).split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        yield _parsed(line, f"{path}, line {number}")


def _parsed(line: str, where: str) -> CausalRow:
    try:
        return _ROW.validate_json(line)
    except ValidationError as error:
        raise DataError(
            f"{where}: not an answer of a causal test ({str(error).splitlines()[0]}). Remove the folder and run again."
        ) from error


def _check_same(file: Path, settings: Any) -> None:
    try:
        before = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: not JSON ({error}). Remove the folder and run again.") from error
    found = list(differences(before, settings))
    if found:
        raise DataError(
            f"{file.parent} holds a causal test with other settings: {'; '.join(found)}. Give the same settings "
            "again, or choose another folder."
        )
