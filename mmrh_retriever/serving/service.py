"""What the endpoints of one server share: the model once it is loaded, the queue before it, threads for reading."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Annotated, ParamSpec, TypeVar, cast

from fastapi import Depends, Request

from mmrh_retriever.adapters.page_sources import PageSource
from mmrh_retriever.adapters.settings import DocumentSettings
from mmrh_retriever.adapters.telemetry import ranking_spans
from mmrh_retriever.pdf.pdf_file import WorkerLimits
from mmrh_retriever.ranking.reranker import Reranker
from mmrh_retriever.serving.errors import RequestError
from mmrh_retriever.serving.file_store import FileStore
from mmrh_retriever.serving.joining import Joining, Rankings
from mmrh_retriever.serving.metrics import Metrics
from mmrh_retriever.serving.settings import ServerSettings
from mmrh_retriever.types import Page

logger = logging.getLogger(__name__)

READERS = 4
"""Threads that read documents. MuPDF's own lock, or its one worker process, lets one PDF in at a time."""
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(eq=False)
class Service:
    """One server's state. The model is loaded by :meth:`open`; until then requests for it are refused with 503.

    ``failure`` is why it could not be loaded; ``on_failure`` is called then.
    """

    settings: ServerSettings
    given: Reranker | None = None
    on_failure: Callable[[], None] | None = None
    failure: Exception | None = None
    ready: bool = False
    metrics: Metrics = field(default_factory=Metrics)
    joining: Joining = field(init=False)
    source: PageSource = field(init=False)
    limits: WorkerLimits = field(init=False)
    files: FileStore = field(init=False)
    _documents: DocumentSettings = field(init=False)
    _readers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(READERS, "mmrh-reader"))
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        named = self.settings.documents
        self._documents = named if self.given is None else _on(self.given, named)
        self.limits = WorkerLimits(seconds=self.settings.pdf_seconds)
        self.source = replace(named.page_source(), max_bytes=self.settings.max_body, isolate=self.limits)
        self.files = FileStore(self.settings.files, self.settings.files_disk)
        self.joining = Joining(self.settings.join_ms / 1000, self.settings.join_questions, self.metrics.count_pass)
        self.metrics.watch("queue", "Requests that wait for the model.", lambda: len(self.joining))
        self.metrics.watch("ready", "Whether the model is loaded.", lambda: self.ready)

    @property
    def reranker(self) -> Reranker:
        """The model's reranker; a :class:`RequestError` with 503 as long as there is none."""
        if not self.ready:
            problem = "The model could not be loaded" if self.failure else "The model is being loaded"
            raise RequestError(503, f"{problem}. Ask /readyz, and try again.", retry_after=5)
        return self._documents.reranker

    @property
    def reads_ahead(self) -> bool:
        """Whether each page is run on its own and kept, so that a part of a file can be read before it is asked."""
        return self.ready and self.reranker.independent and self.reranker.store is not None

    @property
    def model_label(self) -> str:
        """What to call the model."""
        return self._documents.model_label

    def without_paths(self, message: str) -> str:
        """A message without the folders of the files and of the model."""
        message = self.files.without_paths(message)
        return message.replace(self.reranker.backbone.name, self.model_label) if self.ready else message

    def check_questions(self, questions: Sequence[str]) -> None:
        """Refuse more questions, or longer ones, than the settings allow, with 413."""
        most, longest = self.settings.max_questions, self.settings.max_question
        if len(questions) > most:
            raise RequestError(413, f"There are {len(questions)} questions; {most} are taken. Ask some of them.")
        if (length := max(map(len, questions))) > longest:
            raise RequestError(413, f"A question has {length:,} characters; {longest:,} are taken. Shorten it.")

    def check_pages(self, count: int) -> None:
        """Refuse more pages than the settings allow, with 413."""
        if count > self.settings.max_pages:
            raise RequestError(413, f"There are {count:,} pages; {self.settings.max_pages:,} are taken. Give fewer.")

    async def rank(
        self,
        key: Hashable,
        pages: Sequence[Page],
        questions: Sequence[str],
        *,
        top_n: int | None = None,
        with_tokens: bool = False,
    ) -> Rankings:
        """One whole ranking of the pages per question, best first. Requests with equal keys have the same pages.

        Everything that asks the model comes through here. Each question has a span, which says what ``top_n`` was.
        """
        _ = self.reranker
        with ranking_spans(questions, self.model_label, top_n, content=self.settings.trace_content) as spans:
            found = await self.joining.rank(key, pages, questions, with_tokens=with_tokens)
            for span, ranking in zip(spans, found, strict=True):
                span.read(pages)
                span.ranked((scored.page, scored.score) for scored in ranking[:top_n])
            return found

    def open(self) -> None:
        """Begin to load the model, and to answer once it is there."""
        self._tasks.append(asyncio.create_task(self._load_and_run()))

    async def close(self) -> None:
        """Finish the pass that runs, and end the threads."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._readers.shutdown(wait=False, cancel_futures=True)
        self.joining.close()
        self.files.close()

    async def read(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """What a function that reads documents gives, called in one of the readers' threads."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, lambda: function(*args, **kwargs))

    async def _load_and_run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            reranker = await loop.run_in_executor(self._readers, self._loaded)
        except Exception as error:  # noqa: BLE001 - it is kept, and said by whoever started the server
            self.failure = error
            logger.error("The model could not be loaded: %s: %s", type(error).__name__, error)  # noqa: TRY400 - no trace
            if self.on_failure is not None:
                self.on_failure()
            return
        self.ready = True
        await self.joining.run(reranker)

    def _loaded(self) -> Reranker:
        """The reranker, after it has ranked once."""
        reranker = self._documents.reranker
        reranker.with_store(None).rank("Is the model there?", [Page(text="The model is there.")])
        return reranker


def _on(reranker: Reranker, named: DocumentSettings) -> DocumentSettings:
    """The settings of documents with a reranker that is loaded already, which keeps pages as they say."""
    return DocumentSettings(reranker=named.keeping_pages(reranker) if reranker.store is None else reranker)


def service_of(request: Request) -> Service:
    """The service behind a request."""
    return cast(Service, request.app.state.service)


ServiceOf = Annotated[Service, Depends(service_of)]
