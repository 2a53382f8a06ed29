"""The trace that a request belongs to, where its headers name one (``traceparent``)."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mmrh_retriever.adapters.telemetry import caller_context


class Traces:
    """ASGI middleware: spans of a request are parts of its caller's trace."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with caller_context(Headers(scope=scope)):
            await self.app(scope, receive, send)
