"""Rankers over a dataset: every question is measured, and a killed run goes on where it stopped.

    dataset = MMDocIR.from_pdfs("annotations.jsonl", "documents/")
    specs = {"selected": RankerSpec("heads"), "bm25": RankerSpec("bm25")}
    found = evaluate(dataset, specs, "out/")
    found.summaries["selected"].micro["recall@1"]

A question without result (a missing or damaged document) counts as zero. Measures: :mod:`.metrics`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from mmrh_retriever.errors import DataError
from mmrh_retriever.evaluation.documents import DocumentJob, failed_part, measure_document
from mmrh_retriever.evaluation.metrics import Summary, summarise
from mmrh_retriever.evaluation.mmdocir.dataset import MMDocIR
from mmrh_retriever.evaluation.rankers import AnyRanker, Rankers, build_rankers
from mmrh_retriever.evaluation.rows import WHAT, Level, Part, Row, read_parts, write_results
from mmrh_retriever.evaluation.run_settings import settings_of
from mmrh_retriever.pdf.boxes import area
from mmrh_retriever.runs.bootstrap import Interval, PairedDifference, bootstrap_interval, paired_bootstrap
from mmrh_retriever.runs.journal import Journal

logger = logging.getLogger(__name__)

Executor = Callable[[Sequence[DocumentJob]], Iterator[Part]]
"""What runs documents, in any order, here or elsewhere: one part per document and ranker, as they are done."""


@dataclass(frozen=True, slots=True)
class LocalExecutor:
    """Runs documents in this process."""

    dataset: MMDocIR
    rankers: Rankers
    level: Level

    def __call__(self, jobs: Sequence[DocumentJob]) -> Iterator[Part]:
        """One part per document and ranker, in order."""
        for job in jobs:
            yield from measure_document(self.dataset, job, self.rankers, self.level)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found, by ranker in the order given. The others are compared with the first."""

    level: Level
    parts: dict[str, list[Part]]
    summaries: dict[str, Summary]

    @classmethod
    def of(cls, level: Level, parts: dict[str, list[Part]]) -> Evaluation:
        """With averages over every question; those of documents without result count as zero."""
        rows = {name: [row.measured() for part in own for row in part.rows] for name, own in parts.items()}
        return cls(level, parts, {name: summarise(measured) for name, measured in rows.items()})

    @property
    def failed(self) -> dict[str, str]:
        """Documents without result (their questions count as zero), and why."""
        found = [row for parts in self.parts.values() for part in parts for row in part.rows[:1]]
        return {row.document: row.error for row in found if row.error is not None}

    def values(self, ranker: str, measure: str) -> npt.NDArray[np.float64]:
        """A measure of each question, ``(questions,)``, in the order of the dataset."""
        return np.array([row.measures[measure] for row in self._rows(ranker)])

    def interval(self, ranker: str, measure: str, *, macro: bool = False, source: str | None = None) -> Interval:
        """95 % bootstrap interval of the micro (or macro) mean, drawing documents; over one source if named."""
        rows = [row for row in self._rows(ranker) if source in (None, row.source)]
        return bootstrap_interval([row.measures[measure] for row in rows], **_strata(rows, macro))

    def compare(self, ours: str, theirs: str, measure: str, *, macro: bool = False) -> PairedDifference:
        """How far one ranker is above another: paired bootstrap, drawing documents."""
        values = self.values(ours, measure), self.values(theirs, measure)
        return paired_bootstrap(*values, **_strata(self._rows(ours), macro))

    def as_dict(self, ranker: str) -> dict[str, Any]:
        """One ranker's averages, ready for JSON."""
        return {
            "level": self.level,
            "ranker": ranker,
            **asdict(self.summaries[ranker]),
            "failed": sorted(part.document for part in self.parts[ranker] if part.failed),
            "seconds": round(sum(part.seconds for part in self.parts[ranker]), 3),
        }

    def _rows(self, ranker: str) -> list[Row]:
        return [row for part in self.parts[ranker] for row in part.rows]


def _strata(rows: Sequence[Row], macro: bool) -> dict[str, Any]:
    domains = [row.domain for row in rows] if macro else None
    return {"domains": domains, "clusters": [row.document for row in rows]}


def evaluate(
    dataset: MMDocIR,
    rankers: Mapping[str, AnyRanker],
    out: str | Path,
    *,
    level: Level = "page",
    executor: Executor | None = None,
    resume: bool = False,
    settings: Mapping[str, Any] | None = None,
    engine: Executor | None = None,
) -> Evaluation:
    """Measure rankers on every question of a dataset.

    Args:
        dataset: documents and questions.
        rankers: by name: descriptions, or objects that rank. The settings know an object by its class alone.
        out: the run's folder; see :mod:`mmrh_retriever.evaluation.rows`.
        level: ``"page"`` ranks pages, ``"layout"`` the boxes on them.
        executor: what runs the documents; this process by default.
        resume: go on with the run in ``out``, if there is one. Its finished rankers stay, and are given with these.
        settings: what else about the dataset belongs in the settings, such as the resolution of pages.
        engine: the former name of ``executor``.

    Raises:
        DataError: ``out`` holds another run, or questions without gold boxes at layout level.
        MMRHError: models or heads that can't be used. Documents that can't be read do not raise: they are
            logged, count as zero, and are tried again when the run is resumed.
    """
    if engine is not None:
        warnings.warn("engine= is called executor= now.", DeprecationWarning, stacklevel=2)
        executor = executor or engine
    if not rankers:
        raise DataError("There is nothing to evaluate. Give at least one ranker.")
    if level == "layout":
        _check_gold(dataset)
    about = settings_of(dataset, rankers, level=level, more=settings)
    with Journal(out, Part, Part.key, about, what=WHAT, resume=resume, growing="rankers") as journal:
        done = journal.done
        finished = {key for key, part in done.items() if not part.failed}
        jobs = [
            DocumentJob(item, tuple(name for name in rankers if (name, item.name) not in finished))
            for item in dataset.documents
        ]
        if jobs := [job for job in jobs if job.rankers]:
            work = executor or LocalExecutor(dataset, build_rankers(rankers), level)
            total = len(rankers) * len(dataset.documents)
            left = sum(len(job.rankers) for job in jobs)
            shown = {"desc": "documents x rankers", "disable": None, "leave": False}  # on a terminal only
            for part in tqdm(work(jobs), total=total, initial=total - left, **shown):
                journal.add(part)
    parts = {
        name: [
            done.get((name, item.name)) or failed_part(item, name, level, "was not run") for item in dataset.documents
        ]
        for name in journal.settings["rankers"]
        if name in rankers or _was_finished(name, dataset, done)
    }
    found = Evaluation.of(level, parts)
    write_results(out, (part for own in parts.values() for part in own), summary_of(found))
    return found


def _was_finished(ranker: str, dataset: MMDocIR, done: Mapping[tuple[str, str], Part]) -> bool:
    """Whether an earlier run ranked every document with a ranker that this one leaves out; says so if it did not."""
    missing = sum((ranker, item.name) not in done for item in dataset.documents)
    if missing:
        logger.warning("%s stays out: %d documents are left to run. Resume with it.", ranker, missing)
    return not missing


def _check_gold(dataset: MMDocIR) -> None:
    """Refuse questions without gold boxes; warn of those whose gold boxes have no area, which count as zero."""
    for document in dataset.documents:
        for question in document.questions:
            which = f"Question {question.number} of {document.name} (line {document.line})"
            if not question.layouts:
                raise DataError(f"{which} has no gold box. Annotate it, leave it out, or evaluate pages.")
            if not any(area(item.box) > 0 for item in question.layouts):
                logger.warning("%s counts as zero: its gold boxes have no area.", which)


def read_run(path: str | Path) -> Evaluation:
    """What a finished run found, from its folder.

    Raises:
        DataError: no run, one that was not finished, or files that are not ours.
    """
    return Evaluation.of(*read_parts(path))


def summary_of(found: Evaluation) -> dict[str, Any]:
    """Everything about a run that has an average: by ranker, with intervals, and compared with the first."""
    first = next(iter(found.summaries))
    content: dict[str, Any] = {}
    for name, summary in found.summaries.items():
        intervals = {
            average: {key: asdict(found.interval(name, key, macro=average == "macro")) for key in summary.micro}
            for average in ("micro", "macro")
        }
        content[name] = {**found.as_dict(name), "intervals": intervals}
        if name != first:
            above = {key: asdict(found.compare(first, name, key)) for key in summary.micro}
            content[name][f"{first} above this"] = above
    return content
