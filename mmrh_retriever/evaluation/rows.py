"""The folder of an evaluation: settings, and one row a question, written so that a kill never breaks it.

    OUT/settings.json                  what was run, checked when a run is resumed
    OUT/parts/RANKER/00012.json        the rows of the document on line 12, written at once when it is done
    OUT/rows.jsonl                     all rows, written at the end
    OUT/summary.json                   averages, intervals, comparisons, written at the end

Every file is written beside its place and moved there, so what exists is whole. A killed run has lost the
document it was at; the others are not run again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mmrh_retriever.errors import DataError
from mmrh_retriever.evaluation.metrics import Measured
from mmrh_retriever.files import (
    FileModel,
    Finite,
    leftovers,
    parse_as,
    read_text,
    write_atomically,
    write_model,
)

Level = Literal["page", "layout"]
Measure = Annotated[float, Field(ge=0, le=1)]
RankedBox = tuple[int, tuple[Finite, Finite, Finite, Finite], Finite]
"""0-based page, box in the units of the gold boxes, score."""
_SHOWN = 12


class Row(FileModel):
    """One question under one ranker.

    ``scores`` has one a page, ``null`` for a page that was not ranked, and is empty where there is no result;
    ``boxes`` are the best boxes at layout level; ``gold`` are the gold pages, from 0; ``source`` says whether the
    document has a text layer; ``error`` why there is no result. ``measures`` are then all zero.
    """

    ranker: str
    document: str
    question: int
    text: str
    domain: str
    types: list[str]
    source: str | None
    gold: list[int]
    scores: list[Finite | None] = Field(default_factory=list)
    boxes: list[RankedBox] = Field(default_factory=list)
    measures: dict[str, Measure]
    error: str | None = None

    def measured(self) -> Measured:
        """What averages are formed of."""
        return Measured(self.document, self.domain, self.measures, tuple(self.types), self.source)


class Part(FileModel):
    """All questions of one document under one ranker, with the seconds that ranking took."""

    ranker: str
    document: str
    line: int
    level: Level
    seconds: Annotated[float, Field(ge=0)]
    rows: Annotated[list[Row], Field(min_length=1)]

    @property
    def failed(self) -> bool:
        """Whether there is no result."""
        return any(row.error is not None for row in self.rows)


class Settings(FileModel):
    """What a run depends on; a resumed run must agree, but may add rankers."""

    format: Literal["mmrh-evaluation"] = "mmrh-evaluation"
    version: Literal[1] = 1
    level: Level
    dataset: dict[str, Any]
    rankers: dict[str, dict[str, Any]]
    versions: dict[str, str]


class RunFolder:
    """An evaluation's folder.

    Args:
        path: the folder; made if it is missing.
        settings: of this run.
        resume: go on with what is there.

    Raises:
        DataError: the folder holds a run and ``resume`` is off, or that run had other settings (the differences
            are listed), or the folder can't be written.
    """

    def __init__(self, path: Path, settings: Settings, *, resume: bool) -> None:
        self.path = path
        self.settings = settings
        file = path / "settings.json"
        if file.is_file():
            before = parse_as(Settings, read_text(file), name=str(file))
            if not resume:
                raise DataError(f"{path} holds a run already. Go on with it (--resume), or choose another folder.")
            _check_same(before, settings, path)
            self.settings = settings.model_copy(update={"rankers": {**before.rankers, **settings.rankers}})
        elif path.is_dir() and any(item not in leftovers(path) for item in path.iterdir()):
            raise DataError(f"{path} is not empty and holds no run. Choose another folder.")
        try:
            path.mkdir(parents=True, exist_ok=True)
            for item in leftovers(path):
                item.unlink()
            write_model(file, self.settings)  # first of all: without it, the folder is not known as ours
            for name in settings.rankers:
                (path / "parts" / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{path}: can't be made ({error}). Choose another folder.") from error

    def save(self, part: Part) -> None:
        """Keep a document's rows."""
        write_model(self._place(part.ranker, part.line), part)

    def load(self, ranker: str, line: int, document: str) -> Part | None:
        """A document's rows, ``None`` if it has not been done.

        Raises:
            DataError: a file that is not ours.
        """
        place = self._place(ranker, line)
        if not place.is_file():
            return None
        part = parse_as(Part, read_text(place), name=str(place))
        if (part.ranker, part.document, part.level) != (ranker, document, self.settings.level):
            raise DataError(
                f"{place}: holds {part.document} under {part.ranker} at {part.level} level, expected {document} under "
                f"{ranker} at {self.settings.level} level. Remove the file."
            )
        return part

    def finish(self, parts: Iterable[Part], summary: Mapping[str, Any]) -> None:
        """Write all rows and the summary."""
        lines = [row.model_dump_json() for part in parts for row in part.rows]
        write_atomically(self.path / "rows.jsonl", ("\n".join(lines) + "\n").encode())
        content = json.dumps(summary, indent=1, allow_nan=False) + "\n"
        write_atomically(self.path / "summary.json", content.encode())

    def _place(self, ranker: str, line: int) -> Path:
        return self.path / "parts" / ranker / f"{line:05}.json"


def read_rows(path: str | Path) -> Iterator[Row]:
    """The rows of a finished run, from its folder or its ``rows.jsonl``.

    Raises:
        DataError: a missing file or a malformed row; names file and line.
    """
    file = Path(path)
    file = file / "rows.jsonl" if file.is_dir() else file
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        yield parse_as(Row, line, name=f"{file}, line {number}")


def read_parts(path: str | Path) -> tuple[Level, dict[str, list[Part]]]:
    """The level of a finished run, and its documents by ranker, in order.

    Raises:
        DataError: no run, one that was not finished, or files that are not ours.
    """
    folder = Path(path)
    level = parse_as(Settings, read_text(folder / "settings.json"), name=str(folder / "settings.json")).level
    if not (folder / "rows.jsonl").is_file():
        raise DataError(f"{folder}: the run was not finished. Go on with it (mmrh evaluate mmdocir ... --resume).")
    rows = Counter(row.ranker for row in read_rows(folder))
    found: dict[str, list[Part]] = {}
    for ranker, expected in rows.items():
        files = sorted((folder / "parts" / ranker).glob("[0-9]*.json"))
        found[ranker] = [parse_as(Part, read_text(file), name=str(file)) for file in files]
        got = sum(len(part.rows) for part in found[ranker])
        if got != expected:
            raise DataError(
                f"{folder / 'parts' / ranker}: holds {got} rows, expected the {expected} of rows.jsonl. Run the "
                "evaluation again with --resume, which runs what is missing."
            )
    return level, found


def _check_same(before: Settings, now: Settings, path: Path) -> None:
    """Refuse other settings; rankers are compared where both runs have them."""
    shared = before.rankers.keys() & now.rankers.keys()
    old, new = (
        dict(_flat(settings.model_dump(exclude={"rankers"}) | {"rankers": {n: settings.rankers[n] for n in shared}}))
        for settings in (before, now)
    )
    different = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if different:
        shown = "\n".join(f"  {key}: was {old.get(key)!r}, now {new.get(key)!r}" for key in different[:_SHOWN])
        raise DataError(
            f"{path} holds a run with other settings:\n{shown}\nRun with the same settings, or choose another folder."
        )


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
