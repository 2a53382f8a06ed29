"""Many machines: documents are spread over Ray actors, each with its own model.

Every worker reads the dataset by itself. Its files, local models and head sets must therefore have the same path on
all machines (a shared folder). The driver alone writes rows, so a run over a cluster is resumed like any other, with or
without a cluster.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from importlib import import_module
from typing import Any

from mmrh_retriever.errors import DataError, MMRHError
from mmrh_retriever.evaluation.documents import DocumentJob, measure_document
from mmrh_retriever.evaluation.mmdocir.dataset import MMDocIR
from mmrh_retriever.evaluation.rankers import Rankers, RankerSpec, build_rankers
from mmrh_retriever.evaluation.rows import Level, Part

MAX_ATTEMPTS = 3
"""How often a document is given to a worker that is then lost, before the run stops."""
Recipe = Mapping[str, RankerSpec] | Callable[[], Rankers]


class ClusterError(MMRHError, RuntimeError):
    """Workers of a cluster that can't be started, or that are lost again and again."""


@dataclass
class RayExecutor:
    """An evaluation's executor on Ray: one actor per worker, each with one document at a time.

    Args:
        dataset: sent to every worker; its files are read there.
        rankers: descriptions from which every worker makes its own rankers, or a function that makes them.
        level: what is ranked.
        workers: how many; by default one per GPU of the cluster, one if there is none.
        address: of a running cluster (``"auto"`` finds it); a local one is started if ``None``, and stopped after.
        gpus: GPUs per worker; by default one if the cluster has any and a model has to be loaded.
        options: more options of the actors, such as ``{"num_cpus": 4}``.

    Raises:
        ImportError: Ray is missing; it names the extra to install.
        DataError: fewer than one worker.
    """

    dataset: MMDocIR
    rankers: Recipe
    level: Level = "page"
    _: KW_ONLY
    workers: int | None = None
    address: str | None = None
    gpus: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise DataError(f"A cluster needs at least one worker, got {self.workers}.")
        try:
            self.ray = import_module("ray")
        except ImportError as error:
            raise ImportError("The Ray executor needs Ray: pip install 'mmrh-retriever[ray]'.") from error

    def __call__(self, jobs: Sequence[DocumentJob]) -> Iterator[Part]:
        """One part per document and ranker, as workers finish. A lost worker's document is run again by a new one."""
        started = not self.ray.is_initialized()
        if started:
            self.ray.init(address=self.address, include_dashboard=False, log_to_driver=False, logging_level="warning")
        try:
            yield from self._work(jobs)
        finally:
            if started:
                self.ray.shutdown()

    def _work(self, jobs: Sequence[DocumentJob]) -> Iterator[Part]:
        count, gpus = self._workers()
        # Ray starts a lost worker again and gives it its document again
        options = {"num_gpus": gpus, "max_restarts": -1, "max_task_retries": MAX_ATTEMPTS - 1, **self.options}
        worker = self.ray.remote(_Worker).options(**options)
        idle = [worker.remote(self.dataset, self.rankers, self.level) for _ in range(min(count, len(jobs)))]
        waiting = deque(jobs)
        busy: dict[Any, tuple[Any, DocumentJob]] = {}
        while waiting or busy:
            while waiting and idle:
                actor, job = idle.pop(), waiting.popleft()
                busy[actor.measure.remote(job)] = actor, job
            (done, *_), _ = self.ray.wait(list(busy), num_returns=1)
            actor, job = busy.pop(done)
            try:
                parts = self.ray.get(done)
            except self.ray.exceptions.RayActorError as error:
                raise ClusterError(
                    f"{MAX_ATTEMPTS} workers were lost over {job.document.name}, the last with: {error}. Look at the "
                    "workers' memory; finished documents are kept, so the run can be resumed."
                ) from error
            except self.ray.exceptions.RayTaskError as error:
                raise _cause(error) from error
            idle.append(actor)
            yield from parts

    def _workers(self) -> tuple[int, float]:
        """How many workers, and how many GPUs each gets."""
        there = self.ray.cluster_resources().get("GPU", 0)
        model = callable(self.rankers) or any(spec.needs_model for spec in self.rankers.values())
        gpus = float(model and there > 0) if self.gpus is None else self.gpus
        if not gpus:
            return self.workers or 1, gpus
        room = int(there // gpus)
        if room < (self.workers or 1):
            raise ClusterError(
                f"{self.workers or 1} workers with {gpus:g} GPUs each were asked for; the cluster has room for {room}."
            )
        return self.workers or room, gpus


@dataclass
class _Worker:
    """Lives in its own process, perhaps on another machine. Its model is loaded once."""

    dataset: MMDocIR
    recipe: Recipe
    level: Level
    rankers: Rankers | None = None

    def measure(self, job: DocumentJob) -> list[Part]:
        """A document under the rankers it lacks."""
        if self.rankers is None:  # not at the start: what goes wrong here should reach the driver as it is
            self.rankers = self.recipe() if callable(self.recipe) else build_rankers(self.recipe)
        return list(measure_document(self.dataset, job, self.rankers, self.level))


def _cause(error: Exception) -> Exception:
    """What the worker raised, if it is one of ours; a :class:`ClusterError` that quotes it otherwise."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, (MMRHError, ImportError)):
        return cause
    return ClusterError(f"A worker failed: {error}. Finished documents are kept, so the run can be resumed.")
