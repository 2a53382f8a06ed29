"""A door before several servers: limits and keys are checked here, and requests are handed on whole.

Requests about a file go to where its pages are kept: each is handed on with a session, which is the same for all
requests about the same file.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import cast
from urllib.parse import quote

import httpx
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mmrh_retriever.serving.access_log import AccessLog
from mmrh_retriever.serving.errors import RequestError, error_response
from mmrh_retriever.serving.gate import Gate
from mmrh_retriever.serving.keys import Keys
from mmrh_retriever.serving.metrics import Metrics
from mmrh_retriever.serving.settings import ServerSettings

_READY_SECONDS = 2.0  # for an answer of /readyz
_ORIGIN = "http://127.0.0.1"  # a server behind the door answers to names of its own machine
_OF_THE_CONNECTION = frozenset({"authorization", "connection", "content-length", "host", "transfer-encoding"})
_ID = re.compile("[0-9a-f]{64}")
_FILE = re.compile(r"/v1/files/([0-9a-f]{64})(?:/|$)")


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A request on its way to a server; ``target`` is its path and query."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Returned:
    """A server's answer on its way back."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


Ask = Callable[[Forwarded, str], Awaitable[Returned]]
"""Hands a request on, with its session; an empty session goes to any server."""


def create_door(
    settings: ServerSettings, keys: Keys | None, ask: Ask, routes: list[BaseRoute], metrics: Metrics
) -> Starlette:
    """The door as an ASGI app.

    ``/healthz`` and ``/metrics`` are its own. ``routes`` are those of the servers, for the log and the metrics.
    """

    async def forward(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        scope["route"] = next((route for route in routes if route.matches(scope)[0] is Match.FULL), None)
        body = await request.body() if scope["method"] == "POST" else b""  # Gate lets no other body in
        forwarded = Forwarded(scope["method"], _target(scope), _kept(request.headers.items()), body)
        try:
            async with asyncio.timeout(_READY_SECONDS if scope["path"] == "/readyz" else None):
                answer = await ask(forwarded, session_of(scope["path"], body))
        except TimeoutError as error:
            raise RequestError(503, "No server behind the door is ready. Try again.", retry_after=5) from error
        response = Response(answer.body, answer.status)
        response.raw_headers = [(name.encode(), value.encode()) for name, value in answer.headers]
        await response(scope, receive, send)

    async def refused(request: Request, error: Exception) -> Response:
        refusal = cast(RequestError, error)
        return error_response(request, refusal.status_code, refusal.detail, refusal.headers)

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def show_metrics(_: Request) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return Starlette(
        routes=[Route("/healthz", healthz), Route("/metrics", show_metrics), Mount("/", forward)],
        exception_handlers={RequestError: refused},
        middleware=[Middleware(AccessLog, count=metrics.count_request), Middleware(Gate, settings=settings, keys=keys)],
    )


async def answer_of(app: ASGIApp, request: Forwarded) -> Returned:
    """What an app of this process answers."""
    asked = httpx.Request(request.method, _ORIGIN + request.target, headers=list(request.headers), content=request.body)
    found = await httpx.ASGITransport(app).handle_async_request(asked)
    return Returned(found.status_code, tuple(found.headers.multi_items()), await found.aread())


def session_of(path: str, body: bytes) -> str:
    """The file that a request is about, empty if about none. Of several files it is the first by name."""
    if named := _FILE.match(path):
        return named[1]
    if path != "/v1/rank":
        return ""
    try:
        files = json.loads(body)["files"]
        return min(name for name in files if isinstance(name, str) and _ID.fullmatch(name))
    except (ValueError, KeyError, TypeError, RecursionError):  # no body of ours: any server can refuse it
        return ""


def _target(scope: Scope) -> str:
    query = scope.get("query_string", b"").decode("latin-1")
    return quote(scope["path"]) + (f"?{query}" if query else "")


def _kept(headers: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in headers if name not in _OF_THE_CONNECTION)
