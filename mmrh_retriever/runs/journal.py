"""The folder of a long run: its settings, and one line per finished unit, so that a killed run goes on.

    FOLDER/settings.json    what was run; a run that is resumed must have the same
    FOLDER/journal.jsonl    one line per finished unit, appended and written through to the disk at once

A unit is whatever a run does not want to do twice: a probe, a document under a ranker. The journal knows its schema
and its key, and nothing else of it. A kill loses the unit it interrupted: a last line that was cut off is dropped.
A unit that is written again replaces the first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, Literal

from mmrh_retriever.errors import DataError
from mmrh_retriever.files import FileModel as _FileModel
from mmrh_retriever.files import Model, leftovers, parse_as, read_json, write_json

_MISSING = object()
_SHOWN = 12


class _Settings(_FileModel):
    """The settings file."""

    format: Literal["mmrh-run"]
    settings: dict[str, Any]


class Journal(Generic[Model]):
    """A run's folder. Use as a context manager.

    Args:
        folder: the run's folder; made where it is missing.
        unit: the schema of a finished unit.
        key: what tells one unit from another.
        settings: everything that must be alike for the units of one run, ready for JSON.
        what: what the run is, for messages, such as ``"detection run"``.
        resume: go on with the run that the folder holds.
        growing: the name of a setting, itself a mapping, to which a resumed run may add entries.

    Raises:
        DataError: the folder holds a run and ``resume`` is off; that run had other settings (the differences are
            shown); a malformed line; a folder that holds something else or can't be written.
    """

    def __init__(
        self,
        folder: str | Path,
        unit: type[Model],
        key: Callable[[Model], Any],
        settings: Mapping[str, Any],
        *,
        what: str,
        resume: bool,
        growing: str | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.done: dict[Any, Model] = {}
        self._key = key
        self._what = what
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        file = self.folder / "settings.json"
        if file.is_file():
            if not resume:
                raise DataError(
                    f"{self.folder} holds a {what} already. Go on with it (--resume, resume=True), or choose another "
                    "folder."
                )
            before = read_json(file, _Settings, what=f"settings file of a {what}").settings
            self._check_same(before, growing)
        elif self.folder.exists() and not self.folder.is_dir():
            raise DataError(f"{self.folder} is a file. Expected a folder for the {what}.")
        elif self.folder.is_dir() and any(item not in leftovers(self.folder) for item in self.folder.iterdir()):
            raise DataError(f"{self.folder} is not empty and holds no {what}. Choose another folder.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for item in leftovers(self.folder):
                item.unlink()
        except OSError as error:
            raise DataError(f"{self.folder}: can't be made ({error}). Choose another folder.") from error
        write_json(file, _Settings(format="mmrh-run", settings=self.settings))
        path = self.folder / "journal.jsonl"
        try:
            for one in _whole_lines(path, unit, what, cut=True):
                self.done[key(one)] = one
            self._stream = path.open("ab")
        except OSError as error:
            raise DataError(f"{path}: can't be written ({error}). Choose another folder.") from error

    def __enter__(self) -> Journal[Model]:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._stream.close()
        except OSError as error:  # what a failed add() left to be written still can't be
            raise self._unwritten(error) from error

    def add(self, unit: Model) -> None:
        """Write one finished unit through to the disk.

        Raises:
            DataError: the file can't be written, such as on a full disk.
        """
        try:
            self._stream.write(unit.model_dump_json().encode() + b"\n")
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise self._unwritten(error) from error
        self.done[self._key(unit)] = unit

    def _unwritten(self, error: OSError) -> DataError:
        return DataError(f"{self._stream.name}: can't be written ({error}). What was finished is kept.")

    def _check_same(self, before: dict[str, Any], growing: str | None) -> None:
        if growing is not None:
            old, new = before.get(growing, {}), self.settings[growing]
            self.settings[growing] = {**old, **new}
            before = before | {growing: {**new, **old}}
        apart = list(differences(before, self.settings))
        if apart:
            more = [f"and {len(apart) - _SHOWN} more"] if len(apart) > _SHOWN else []
            shown = "".join(f"\n  {line}" for line in apart[:_SHOWN] + more)
            raise DataError(
                f"{self.folder} holds a {self._what} with other settings:{shown}\nGive the same settings again, or "
                "choose another folder."
            )


def read_journal(folder: str | Path, unit: type[Model], *, what: str) -> tuple[dict[str, Any], list[Model]]:
    """The settings and the finished units of a run, in the order of writing. Nothing is changed.

    Raises:
        DataError: there is no run in the folder, or a malformed line.
    """
    settings = read_json(Path(folder) / "settings.json", _Settings, what=f"settings file of a {what}").settings
    return settings, list(_whole_lines(Path(folder) / "journal.jsonl", unit, what, cut=False))


def _whole_lines(path: Path, unit: type[Model], what: str, *, cut: bool) -> Iterator[Model]:
    """The units of a journal. A last line without its end is passed over, and cut off the file on demand."""
    if not path.is_file():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if cut and whole < len(data):
        with path.open("r+b") as stream:
            stream.truncate(whole)
    for number, line in enumerate(data[:whole].split(b"\n")[:-1], start=1):
        yield parse_as(unit, line, where=f"{path}, line {number}", what=f"line of a {what}")


def differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """``a.b: was X, now Y`` for each value that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from differences(before.get(key, _MISSING), now.get(key, _MISSING), f"{name}.{key}".strip("."))
    elif before != now:
        old, new = ("nothing" if value is _MISSING else repr(value) for value in (before, now))
        yield f"{name}: was {old}, now {new}"
