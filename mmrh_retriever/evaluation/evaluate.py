"""Rankers over a dataset: every question measured, nothing lost when a run is killed.

    dataset = MMDocIR.from_pdfs("annotations.jsonl", "documents/")
    specs = {"selected": RankerSpec("heads"), "bm25": RankerSpec("bm25")}
    found = evaluate(dataset, specs, "out/")
    found.summaries["selected"].micro["recall@1"]

A question without result (a missing or damaged document) counts as zero. Measures: :mod:`.metrics`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
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
from mmrh_retriever.evaluation.documents import Rankers, Task, failed_part, measure_document
from mmrh_retriever.evaluation.metrics import Summary, summarise
from mmrh_retriever.evaluation.mmdocir.dataset import MMDocIR
from mmrh_retriever.evaluation.rankers import PageRanker, RankerSpec, RegionRanker, build_rankers
from mmrh_retriever.evaluation.rows import Level, Part, RunFolder, Settings, read_parts
from mmrh_retriever.model.loading import HEADS_FILE, default_dtype, model_path
from mmrh_retriever.runs.bootstrap import Interval, PairedDifference, bootstrap_interval, paired_bootstrap

_HASHED_BYTES = 64 * 1024 * 1024
_TEXTS = (".md", ".txt")
_MATTERS = {"bm25": ("kind",), "random": ("kind", "seed"), "embedding": ("kind", "model")}
"""What the settings of a ranker hold, where it is not everything."""

T = TypeVar("T")


class Engine(Protocol):
    """Something that works through tasks, in any order, here or elsewhere."""

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Part]:
        """One part a document and ranker, as they are done."""
        ...  # pragma: no cover


@dataclass(frozen=True, slots=True)
class LocalExecutor:
    """Works through tasks in this process."""

    dataset: MMDocIR
    rankers: Rankers
    level: Level

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Part]:
        """One part a document and ranker, in order."""
        for task in tasks:
            yield from measure_document(self.dataset, task, self.rankers, self.level)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found. Keys are rankers, in the order given; the first is what others are compared with."""

    level: Level
    parts: dict[str, list[Part]]
    summaries: dict[str, Summary]

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
    rankers: Mapping[str, RankerSpec | PageRanker | RegionRanker],
    out: str | Path,
    *,
    level: Level = "page",
    engine: Engine | None = None,
    resume: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Measure rankers on every question of a dataset.

    Args:
        dataset: documents and questions.
        rankers: by name: descriptions, or objects that rank (which the settings then know by their class alone).
        out: the run's folder; see :mod:`mmrh_retriever.evaluation.rows`.
        level: ``"page"`` ranks pages, ``"layout"`` the boxes on them.
        engine: where the work is done; this process by default.
        resume: go on with the run in ``out``, if there is one.
        settings: what else about the dataset belongs in the settings, such as the resolution of pages.

    Raises:
        DataError: ``out`` holds another run, or questions without gold boxes at layout level.
        MMRHError: models or heads that can't be used. Documents that can't be read do not raise: they are
            logged, count as zero, and are tried again when the run is resumed.
    """
    if not rankers:
        raise DataError("There is nothing to evaluate. Give at least one ranker.")
    _check_gold(dataset, level)
    about = settings_of(dataset, rankers, level=level, more=settings)
    folder = RunFolder(Path(out), about, resume=resume)
    done: dict[tuple[str, str], Part] = {}
    for name in rankers:
        for document in dataset.documents:
            part = folder.load(name, document.line, document.name)
            if part is not None and not part.failed:
                done[name, document.name] = part
    waiting = [(item, tuple(n for n in rankers if (n, item.name) not in done)) for item in dataset.documents]
    tasks = [Task(document, names) for document, names in waiting if names]
    if tasks:
        work = engine or LocalExecutor(dataset, _built(rankers), level)
        expected = sum(len(task.rankers) for task in tasks)
        for part in _shown(work(tasks), total=expected + len(done), done=len(done)):
            folder.save(part)
            done[part.ranker, part.document] = part
    found = collect(dataset, done, list(rankers), level)
    ordered = [part for parts in found.parts.values() for part in parts]
    folder.finish(ordered, summary_of(found))
    return found


def collect(dataset: MMDocIR, done: Mapping[tuple[str, str], Part], rankers: Sequence[str], level: Level) -> Evaluation:
    """Averages over every question of the dataset; those of documents that were not done count as zero."""
    parts = {
        name: [
            done.get((name, item.name)) or failed_part(item, name, level, "was not run", source=None)
            for item in dataset.documents
        ]
        for name in rankers
    }
    summaries = {name: summarise([row.measured() for part in parts[name] for row in part.rows]) for name in rankers}
    return Evaluation(level, parts, summaries)


def read_run(path: str | Path) -> Evaluation:
    """What a finished run found, from its folder.

    Raises:
        DataError: no run, one that was not finished, or files that are not ours.
    """
    level, parts = read_parts(path)
    summaries = {name: summarise([row.measured() for part in parts[name] for row in part.rows]) for name in parts}
    return Evaluation(level, parts, summaries)


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
    dataset: MMDocIR,
    rankers: Mapping[str, RankerSpec | PageRanker | RegionRanker],
    *,
    level: Level,
    more: Mapping[str, Any] | None = None,
) -> Settings:
    """What a run depends on: data, models and heads with their fingerprints, options, versions."""
    about: dict[str, Any] = {
        "fingerprint": dataset.fingerprint,
        "documents": len(dataset.documents),
        "questions": sum(len(item.questions) for item in dataset.documents),
        **(more or {}),
    }
    packages = ("torch", "transformers", "pymupdf", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    versions |= {"mmrh_retriever": mmrh_retriever.__version__, "python": platform.python_version()}
    described = {name: _described(ranker) for name, ranker in rankers.items()}
    return Settings(level=level, dataset=about, rankers=described, versions=versions)


def _described(ranker: object) -> dict[str, Any]:
    if not isinstance(ranker, RankerSpec):
        return {"class": type(ranker).__qualname__}
    content = {key: value for key, value in asdict(ranker).items() if key in _MATTERS.get(ranker.kind, (key,))}
    if ranker.kind == "heads":
        path, bundled = model_path(ranker.model)
        content["model"] = "bundled" if bundled else path
        if Path(path).is_dir():
            content["model_fingerprint"] = _folder_fingerprint(Path(path))
            content["dtype"] = ranker.dtype or default_dtype(Path(path), ranker.device)
        heads = Path(path) / HEADS_FILE if ranker.heads == "published" else Path(ranker.heads)
        if heads.is_file():
            content["heads_fingerprint"] = _file_fingerprint(heads)
    return content


def _folder_fingerprint(folder: Path) -> str:
    """Over a model folder's files but its heads and texts: names and sizes, and the content of those not huge."""
    digest = hashlib.sha256()
    for file in sorted(item for item in folder.iterdir() if item.is_file()):
        if file.name == HEADS_FILE or file.suffix in _TEXTS:
            continue
        size = file.stat().st_size
        digest.update(f"{file.name} {size} {_file_fingerprint(file) if size <= _HASHED_BYTES else ''}\n".encode())
    return digest.hexdigest()[:16]


def _file_fingerprint(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _built(rankers: Mapping[str, RankerSpec | PageRanker | RegionRanker]) -> Rankers:
    built = build_rankers({name: item for name, item in rankers.items() if isinstance(item, RankerSpec)})
    return {name: built[name] if isinstance(item, RankerSpec) else item for name, item in rankers.items()}


def _shown(parts: Iterable[T], *, total: int, done: int) -> Iterator[T]:
    """Parts as they come, with a bar and the time left on stderr, if that is a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("documents x rankers", total=total, completed=done)
        for part in parts:
            yield part
            progress.advance(task)
