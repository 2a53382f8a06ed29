"""An evaluation's folder: a journal of finished documents, then all rows and the summary.

    OUT/settings.json     what was run; a run that is resumed must have the same, but for its rankers
    OUT/journal.jsonl     one line per document and ranker, written at once when it is done
    OUT/rows.jsonl        one row per question and ranker, written at the end
    OUT/summary.json      averages, intervals, comparisons, written at the end

A killed run has lost the document it was at. The others are not run again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, RootModel, model_validator

from mmrh_retriever.errors import DataError
from mmrh_retriever.evaluation.metrics import Measured, PageBox, layout_measures, page_measures
from mmrh_retriever.files import FileModel, Finite, is_file, parse_as, read_json, write_atomically, write_json
from mmrh_retriever.runs.journal import read_journal

Level = Literal["page", "layout"]
Measure = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
RankedBox = tuple[int, tuple[Finite, Finite, Finite, Finite], Finite]
"""0-based page, box in the units of the gold boxes, score."""
FORMAT = {"format": "mmrh-evaluation", "version": 3}
"""What the settings of an evaluation begin with."""
WHAT = "ranking evaluation"
"""How messages call such a run."""
_BOX = PageBox(0, (0.0, 0.0, 1.0, 1.0))
MEASURES: Mapping[Level, Set[str]] = {
    "page": page_measures([1.0], [0]).keys(),
    "layout": layout_measures([_BOX], [_BOX]).keys(),
}
"""The names of every question's measures."""


class Row(FileModel):
    """One question under one ranker.

    ``scores`` has one per page, ``null`` for a page that was not ranked; ``boxes`` are the best boxes at layout level;
    ``gold`` are the gold pages, from 0; ``source`` says whether the document has a text layer; ``error`` why there is
    no result. ``measures`` are then all zero.
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
    """All questions of one document under one ranker, with the seconds that ranking took: a line of the journal."""

    ranker: str
    document: str
    line: int
    level: Level
    seconds: Annotated[float, Field(ge=0)]
    rows: Annotated[list[Row], Field(min_length=1)]

    @model_validator(mode="after")
    def _whole(self) -> Part:
        wanted = MEASURES[self.level]
        for row in self.rows:
            if (row.document, row.ranker) != (self.document, self.ranker):
                raise ValueError(f"question {row.question} is another document's or ranker's")
            if row.measures.keys() != wanted:
                raise ValueError(
                    f"question {row.question} under {self.ranker} has other measures than those of {self.level} level: "
                    f"{sorted(wanted ^ row.measures.keys())} are missing or too many"
                )
        return self

    def key(self) -> tuple[str, str]:
        """What tells one unit of the journal from another."""
        return self.ranker, self.document

    @property
    def failed(self) -> bool:
        """Whether there is no result."""
        return any(row.error is not None for row in self.rows)


class _Summary(RootModel[Annotated[dict[str, Any], Field(min_length=1)]]):
    """The summary file: averages by ranker."""


class _Dataset(BaseModel):
    documents: Annotated[int, Field(ge=1)]


class _Settings(BaseModel):
    """What is needed of a run's settings to read its results."""

    level: Level
    dataset: _Dataset


def write_results(folder: str | Path, parts: Iterable[Part], summary: Mapping[str, Any]) -> None:
    """Write all rows, then the summary, which says that the run is finished."""
    lines = [row.model_dump_json() for part in parts for row in part.rows]
    write_atomically(Path(folder) / "rows.jsonl", ("\n".join(lines) + "\n").encode())
    write_json(Path(folder) / "summary.json", summary)


def read_parts(path: str | Path) -> tuple[Level, dict[str, list[Part]]]:
    """The level of a finished run, and its documents by ranker, both in the order of the run."""
    folder = Path(path)
    settings, units = read_journal(folder, Part, what=WHAT)
    if {key: settings.get(key) for key in FORMAT} != FORMAT:
        raise DataError(f"{folder} holds another kind of run. Give the folder of a finished {WHAT} (--out).")
    if not is_file(folder / "summary.json"):
        raise DataError(f"{folder}: the run was not finished. Go on with it (--resume).")
    about = parse_as(_Settings, json.dumps(settings), where=f"{folder / 'settings.json'}", what=f"settings of a {WHAT}")
    summary = read_json(folder / "summary.json", _Summary, what=f"summary of a {WHAT}")
    done = sorted({part.key(): part for part in units}.values(), key=lambda part: part.line)
    found = {ranker: [part for part in done if part.ranker == ranker] for ranker in summary.root}
    expected = about.dataset.documents
    first = next(iter(found.values()))
    for ranker, parts in found.items():
        if len(parts) != expected:
            raise DataError(
                f"{folder / 'journal.jsonl'}: holds {len(parts)} documents under {ranker}, expected {expected}. Run "
                "the evaluation again with --resume, which runs what is missing."
            )
        for part, same in zip(parts, first, strict=True):
            asked = [[(row.question, row.domain, row.types) for row in one.rows] for one in (part, same)]
            if part.level != about.level or part.document != same.document or asked[0] != asked[1]:
                raise DataError(
                    f"{folder / 'journal.jsonl'}: {part.document} under {ranker} is not of {about.level} level, or has "
                    f"other questions than {same.document} under {same.ranker}. Run the evaluation in another folder."
                )
    return about.level, found
