"""The folder of a long run: its settings, and one line per finished unit, so that a killed run goes on.

    FOLDER/settings.json    what was run; a run that is resumed must have the same
    FOLDER/journal.jsonl    one line per finished unit, appended and written through to the disk at once

A unit is whatever a run does not want to do twice: a probe, a document under a ranker. A kill loses the unit that it
interrupted: a last line that was cut off is dropped. A unit that is written again replaces the first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, Literal

from mmrh_retriever.errors import DataError
from mmrh_retriever.files import FileModel, Model, is_file, is_folder, leftovers, parse_as, read_json, write_json

_MISSING = object()
_SHOWN = 12


class _Settings(FileModel):
    format: Literal["mmrh-run"]
    settings: dict[str, Any]


class Journal(Generic[Model]):
    """A run's folder, as a context manager; ``done`` holds the finished units by what ``key`` gives for them.

    ``settings`` must be alike for all units of one run; a resumed run may add entries to the one named ``growing``,
    or name fewer: ``settings`` then holds those of all.

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
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._key, self._what = key, what
        if is_file(self.folder / "settings.json"):
            if not resume:
                advice = "Go on with it (resume=True), or choose another folder."
                raise DataError(f"{self.folder} holds a {what} already. {advice}")
            self._check_same(_read_settings(self.folder, what), growing)
        elif is_file(self.folder):
            raise DataError(f"{self.folder} is a file. Expected a folder for the {what}.")
        elif is_folder(self.folder) and any(item not in leftovers(self.folder) for item in self.folder.iterdir()):
            raise DataError(f"{self.folder} is not empty and holds no {what}. Choose another folder.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for item in leftovers(self.folder):
                item.unlink()
        except (OSError, ValueError) as error:
            raise DataError(f"{self.folder}: can't be made ({error}). Choose another folder.") from error
        write_json(self.folder / "settings.json", _Settings(format="mmrh-run", settings=self.settings))
        path = self.folder / "journal.jsonl"
        try:
            self.done = {key(one): one for one in _whole_lines(path, unit, what, cut=True)}
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
        """Write one finished unit through to the disk; a :class:`DataError` if that fails, such as on a full disk."""
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
            order = old if new.keys() <= old.keys() else {**new, **old}
            self.settings[growing] = {name: {**old, **new}[name] for name in order}
            before = before | {growing: {**new, **old}}
        if apart := list(differences(before, self.settings)):
            more = [f"and {len(apart) - _SHOWN} more"] if len(apart) > _SHOWN else []
            shown = "".join(f"\n  {line}" for line in apart[:_SHOWN] + more)
            advice = "Give the same settings again, or choose another folder."
            raise DataError(f"{self.folder} holds a {self._what} with other settings:{shown}\n{advice}")


def read_journal(folder: str | Path, unit: type[Model], *, what: str) -> tuple[dict[str, Any], list[Model]]:
    """The settings and the finished units of a run, in the order of writing. Nothing is changed."""
    return _read_settings(Path(folder), what), list(_whole_lines(Path(folder) / "journal.jsonl", unit, what, cut=False))


def _read_settings(folder: Path, what: str) -> dict[str, Any]:
    return read_json(folder / "settings.json", _Settings, what=f"settings file of a {what}").settings


def _whole_lines(path: Path, unit: type[Model], what: str, *, cut: bool) -> Iterator[Model]:
    """The units of a journal. A last line without its end is passed over, and cut off the file on demand."""
    if not is_file(path):
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
