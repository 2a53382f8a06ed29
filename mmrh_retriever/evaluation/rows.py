"""An evaluation's folder: a journal of finished documents, then all rows and the summary.

    OUT/settings.json     what was run; a run that is resumed must have the same, but may add rankers
    OUT/journal.jsonl     one line per document and ranker, written at once when it is done
    OUT/rows.jsonl        one row per question and ranker, written at the end
    OUT/summary.json      averages, intervals, comparisons, written at the end

A killed run has lost the document it was at. The others are not run again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, RootModel

from mmrh_retriever.errors import DataError
from mmrh_retriever.evaluation.metrics import Measured
from mmrh_retriever.files import FileModel, Finite, read_json, write_atomically, write_json
from mmrh_retriever.runs.journal import read_journal

Level = Literal["page", "layout"]
Measure = Annotated[float, Field(ge=0, allow_inf_nan=False)]
RankedBox = tuple[int, tuple[Finite, Finite, Finite, Finite], Finite]
"""0-based page, box in the units of the gold boxes, score."""
FORMAT = {"format": "mmrh-evaluation", "version": 3}
"""What the settings of an evaluation begin with."""
WHAT = "ranking evaluation"
"""How messages call such a run."""


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

    def key(self) -> tuple[str, str]:
        """What tells one unit of the journal from another."""
        return self.ranker, self.document

    @property
    def failed(self) -> bool:
        """Whether there is no result."""
        return any(row.error is not None for row in self.rows)


class _Summary(RootModel[dict[str, Any]]):
    """The summary file: averages by ranker."""


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
    if not (folder / "summary.json").is_file():
        raise DataError(f"{folder}: the run was not finished. Go on with it (mmrh evaluate mmdocir ... --resume).")
    summary = read_json(folder / "summary.json", _Summary, what=f"summary of a {WHAT}")
    done = sorted({part.key(): part for part in units}.values(), key=lambda part: part.line)
    found = {ranker: [part for part in done if part.ranker == ranker] for ranker in summary.root}
    expected = settings["dataset"]["documents"]
    for ranker, parts in found.items():
        if len(parts) != expected:
            raise DataError(
                f"{folder / 'journal.jsonl'}: holds {len(parts)} documents under {ranker}, expected {expected}. Run "
                "the evaluation again with --resume, which runs what is missing."
            )
    return settings["level"], found
