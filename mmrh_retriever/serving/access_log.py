"""A line in the log for each request, and an answer to errors that nobody expected.

A line holds the method, the route's template, the status, seconds and the request's id: nothing that a document, a
file's name or a question says.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmrh_retriever.serving.errors import failure_response

logger = logging.getLogger("mmrh_retriever.serving")

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods that stand in the log and in metrics by their names."""


class AccessLog:
    """ASGI middleware. ``count`` is called with method, route, status and seconds of each request."""

    def __init__(self, app: ASGIApp, count: Callable[[str, str, int, float], None]) -> None:
        self.app = app
        self.count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request and write its line."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name, started, status = uuid.uuid4().hex, time.perf_counter(), 0
        scope.setdefault("state", {})["request_id"] = name

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = name
            await send(message)

        try:
            await self.app(scope, receive, answer)
        except Exception as error:  # noqa: BLE001 - it is logged and answered
            failure = failure_response(Request(scope), error)
            if not status:  # else an answer has begun, and the server cuts the connection
                await failure(scope, receive, answer)
        finally:
            seconds = time.perf_counter() - started
            method = scope["method"] if scope["method"] in METHODS else "other"
            known = status or scope.get("mmrh_status", 500)
            route = route_of(scope)
            self.count(method, route, known, seconds)
            logger.info("%s %s %d %.3f s %s", method, route, known, seconds, name)


def log_to_stderr() -> None:
    """Write the server's own log to stderr, a line each."""
    if logger.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)


def route_of(scope: Scope) -> str:
    """The template of the route that a request was for, ``other`` if there is none."""
    return str(getattr(scope.get("route"), "path", "other"))
