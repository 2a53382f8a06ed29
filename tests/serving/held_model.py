"""A server whose model can be held in the middle of its work, and requests to it whose client can go away."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from mmrh_retriever import Reranker
from mmrh_retriever.serving.app import create_app
from mmrh_retriever.serving.settings import ServerSettings
from tests.serving.conftest import LOCAL


class HeldModel:
    """Lets a reranker's passes begin only while it is open, and counts them with their questions."""

    def __init__(self, reranker: Reranker, *, held: bool = False) -> None:
        self.open = threading.Event()
        if not held:
            self.open.set()
        self.begun = threading.Semaphore(0)
        self.passes: list[list[str]] = []
        self._rank_many = reranker.rank_many
        reranker.rank_many = self._held  # type: ignore[method-assign]

    def _held(self, questions: list[str], *args: Any, **options: Any) -> Any:
        self.passes.append(list(questions))
        self.begun.release()
        assert self.open.wait(60)
        return self._rank_many(questions, *args, **options)

    async def has_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=60)


@asynccontextmanager
async def running(reranker: Reranker, **settings: Any) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    """An app with its model ready, and a client of it."""
    app = create_app(ServerSettings(**settings), reranker=reranker)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url=LOCAL) as client:
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.01)
        yield app, client


class RawRequest:
    """A request by hand: its body in parts, and a client that may go away."""

    def __init__(
        self, path: str, parts: Iterable[bytes], headers: dict[str, str] | None = None, method: str = "POST"
    ) -> None:
        path, _, query = path.partition("?")
        self.parts = list(parts)
        self.taken = 0
        self.gone = asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        named = {"host": "localhost", "content-type": "application/json", **(headers or {})}
        self.scope: dict[str, Any] = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in named.items()],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        }  # fmt: skip

    @classmethod
    def of_json(cls, path: str, body: object) -> RawRequest:
        return cls(path, [json.dumps(body).encode()])

    async def receive(self) -> dict[str, Any]:
        if self.taken < len(self.parts):
            self.taken += 1
            more = self.taken < len(self.parts)
            return {"type": "http.request", "body": self.parts[self.taken - 1], "more_body": more}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int | None:
        return self.sent[0]["status"] if self.sent else None

    @property
    def answer(self) -> Any:
        return json.loads(b"".join(message.get("body", b"") for message in self.sent))
