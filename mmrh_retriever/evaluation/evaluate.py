"""Rankers over a dataset: every question is measured, and a killed run goes on where it stopped.

    dataset = MMDocIR.from_pdfs("annotations.jsonl", "documents/")
    specs = {"selected": RankerSpec("heads"), "bm25": RankerSpec("bm25")}
    found = evaluate(dataset, specs, "out/")
    found.summaries["selected"].micro["recall@1"]

A question without result (a missing or damaged document) counts as zero. Measures: :mod:`.metrics`.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import mmrh_retriever
from mmrh_retriever.errors import DataError
from mmrh_retriever.evaluation.documents import DocumentJob, Rankers, failed_part, measure_document
from mmrh_retriever.evaluation.metrics import Summary, summarise
from mmrh_retriever.evaluation.mmdocir.dataset import MMDocIR
from mmrh_retriever.evaluation.rankers import PageRanker, RankerSpec, RegionRanker, build_rankers
from mmrh_retriever.evaluation.rows import FORMAT, Level, Part, open_journal, read_parts, write_results
from mmrh_retriever.model.fingerprints import file_fingerprint, folder_fingerprint
from mmrh_retriever.model.loading import HEADS_FILE, default_dtype, model_path
from mmrh_retriever.runs.bootstrap import Interval, PairedDifference, bootstrap_interval, paired_bootstrap

_MATTERS = {"bm25": ("kind",), "random": ("kind", "seed"), "embedding": ("kind", "model")}
"""What the settings of a ranker hold, where it is not everything."""
_INDIFFERENT = {"cache_dir", "local_files_only"}
"""Settings that change no score."""

AnyRanker = RankerSpec | PageRanker | RegionRanker
T = TypeVar("T")


class Executor(Protocol):
    """Something that runs documents, in any order, here or elsewhere."""

    def __call__(self, jobs: Sequence[DocumentJob]) -> Iterator[Part]:
        """One part per document and ranker, as they are done."""
        ...  # pragma: no cover


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
        return np.array([row.measures[measure] for part in self.parts[ranker] for row in part.rows])

    def interval(self, ranker: str, measure: str, *, macro: bool = False, source: str | None = None) -> Interval:
        """95 % bootstrap interval of the micro (or macro) mean, drawing documents; over one source if named."""
        rows = [row for part in self.parts[ranker] for row in part.rows if source in (None, row.source)]
        return bootstrap_interval(
            [row.measures[measure] for row in rows],
            domains=[row.domain for row in rows] if macro else None,
            clusters=[row.document for row in rows],
        )

    def compare(self, ours: str, theirs: str, measure: str, *, macro: bool = False) -> PairedDifference:
        """How far one ranker is above another: paired bootstrap, drawing documents."""
        rows = [row for part in self.parts[ours] for row in part.rows]
        return paired_bootstrap(
            self.values(ours, measure),
            self.values(theirs, measure),
            domains=[row.domain for row in rows] if macro else None,
            clusters=[row.document for row in rows],
        )

    def as_dict(self, ranker: str) -> dict[str, Any]:
        """One ranker's averages, ready for JSON."""
        summary = asdict(self.summaries[ranker])
        keys = ("micro", "macro", "by_domain", "by_type", "by_source", "counts", "questions")
        failed = sorted(part.document for part in self.parts[ranker] if part.failed)
        seconds = round(sum(part.seconds for part in self.parts[ranker]), 3)
        about = {"level": self.level, "ranker": ranker}
        return about | {key: summary[key] for key in keys} | {"failed": failed, "seconds": seconds}


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
        resume: go on with the run in ``out``, if there is one.
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
    _check_gold(dataset, level)
    about = settings_of(dataset, rankers, level=level, more=settings)
    with open_journal(out, about, resume=resume) as journal:
        finished = {key for key, part in journal.done.items() if not part.failed}
        jobs = [
            DocumentJob(item, tuple(name for name in rankers if (name, item.name) not in finished))
            for item in dataset.documents
        ]
        jobs = [job for job in jobs if job.rankers]
        if jobs:
            work = executor or LocalExecutor(dataset, _built(rankers), level)
            total = len(rankers) * len(dataset.documents)
            left = sum(len(job.rankers) for job in jobs)
            for part in _shown(work(jobs), total=total, done=total - left):
                journal.add(part)
        done = journal.done
    parts = {
        name: [
            done.get((name, item.name)) or failed_part(item, name, level, "was not run") for item in dataset.documents
        ]
        for name in rankers
    }
    found = Evaluation.of(level, parts)
    write_results(out, (part for parts in found.parts.values() for part in parts), summary_of(found))
    return found


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
        content[name] = found.as_dict(name)
        content[name]["intervals"] = {
            average: {
                key: asdict(found.interval(name, key, macro=average == "macro")) for key in summary.micro
            }
            for average in ("micro", "macro")
        }  # fmt: skip
        if name != first:
            content[name][f"{first} above this"] = {
                key: asdict(found.compare(first, name, key)) for key in summary.micro
            }
    return content


# Settings and progress


def _check_gold(dataset: MMDocIR, level: Level) -> None:
    if level == "page":
        return
    for document in dataset.documents:
        for question in document.questions:
            if not any(item.box[0] < item.box[2] and item.box[1] < item.box[3] for item in question.layouts):
                raise DataError(
                    f"Question {question.number} of {document.name} (line {document.line}) has no gold box with an "
                    "area. Annotate it, leave it out, or evaluate pages."
                )


def settings_of(
    dataset: MMDocIR, rankers: Mapping[str, AnyRanker], *, level: Level, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a run depends on, ready for JSON: data, models and heads with their fingerprints, options, versions."""
    packages = ("torch", "transformers", "pymupdf", "numpy")
    return {
        **FORMAT,
        "level": level,
        "dataset": {
            "fingerprint": dataset.fingerprint,
            "documents": len(dataset.documents),
            "questions": sum(len(item.questions) for item in dataset.documents),
            **(more or {}),
        },
        "rankers": {name: _described(ranker) for name, ranker in rankers.items()},
        "versions": {
            **{name: importlib.metadata.version(name) for name in packages},
            "mmrh_retriever": mmrh_retriever.__version__,
            "python": platform.python_version(),
        },
    }


def _described(ranker: object) -> dict[str, Any]:
    if not isinstance(ranker, RankerSpec):
        return {"class": type(ranker).__qualname__}
    given = {
        "kind": ranker.kind,
        "heads": ranker.heads,
        **ranker.settings.model_dump(exclude=_INDIFFERENT),
        "aggregate": ranker.aggregate,
        "region_method": ranker.region_method,
        "seed": ranker.seed,
    }
    content = {key: value for key, value in given.items() if key in _MATTERS.get(ranker.kind, (key,))}
    if ranker.kind == "heads":
        path, bundled = model_path(ranker.settings.model)
        content["model"] = "bundled" if bundled else path
        if Path(path).is_dir():
            content["model_fingerprint"] = folder_fingerprint(Path(path), without=HEADS_FILE)
            content["dtype"] = ranker.settings.dtype or default_dtype(Path(path), ranker.settings.device)
        heads = Path(path) / HEADS_FILE if ranker.heads == "published" else Path(ranker.heads)
        if heads.is_file():
            content["heads_fingerprint"] = file_fingerprint(heads)
    plain: dict[str, Any] = json.loads(json.dumps(content, default=repr))  # model_kwargs may hold objects
    return plain


def _built(rankers: Mapping[str, AnyRanker]) -> Rankers:
    built = build_rankers({name: item for name, item in rankers.items() if isinstance(item, RankerSpec)})
    return {name: built[name] if isinstance(item, RankerSpec) else item for name, item in rankers.items()}


def _shown(parts: Iterable[T], *, total: int, done: int) -> Iterator[T]:
    """Parts as they come, with a bar and the time left on stderr, where that is a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("documents x rankers", total=total, completed=done)
        for part in parts:
            yield part
            progress.advance(bar)
