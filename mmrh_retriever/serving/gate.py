"""What stands before every endpoint: keys, places in the queue, bytes and seconds of a request, clients that went away.

Nothing of a body is read before the key is known.
A request that makes work (a POST, or a page's picture) takes a place from its first byte to its answer. It ends early,
and gives its place back, when its time is up or its client is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import re

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmrh_retriever.serving.errors import CLIENT_CLOSED, RequestError, error_response
from mmrh_retriever.serving.keys import Keys
from mmrh_retriever.serving.settings import ServerSettings, is_loopback

OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/openapi.json"})
"""What is answered without a key, beside the page's own files."""
PAGE_PATH = "/page/"
"""Where the files of the page for people are."""
_HOST_PORT = re.compile(r":\d*$")


class Gate:
    """ASGI middleware that lets requests in within the settings' limits, and with ``keys`` only who has one."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, keys: Keys | None) -> None:
        self.app = app
        self.settings = settings
        self.keys = keys
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        place = contextlib.ExitStack()
        response = _Response(send, place)
        try:
            self._check_caller(scope)
            with place:
                self._take(place, scope)
                await self._within_limits(scope, receive, response)
        except RequestError as error:
            if response.begun:  # too late for another status: the connection is cut
                raise
            refusal = error_response(Request(scope), error.status_code, error.detail, error.headers)
            await refusal(scope, receive, send)

    def _check_caller(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self.keys is None:
            origins = [origin.partition("://")[2] for origin in headers.getlist("origin")]  # the page's that sends it
            hosts = [_HOST_PORT.sub("", it).strip("[]").lower() for it in (headers.get("host", ""), *origins)]
            if not all(is_loopback(host) or host == self.settings.host for host in hosts):
                raise RequestError(
                    403,
                    "Without API keys the server answers to names of this machine only, such as localhost. A page of "
                    "another site may have sent you here.",
                )
        elif scope["path"] not in OPEN_PATHS and not scope["path"].startswith(PAGE_PATH):
            self.keys.spend(headers.get("authorization"))

    def _take(self, place: contextlib.ExitStack, scope: Scope) -> None:
        if scope["method"] != "POST" and not scope["path"].endswith(".png"):
            return
        if self.inside >= self.settings.max_queue:
            raise RequestError(429, f"{self.inside} requests wait or run already. Try again later.", retry_after=1)
        self.inside += 1
        place.callback(self._leave)

    def _leave(self) -> None:
        self.inside -= 1

    async def _within_limits(self, scope: Scope, receive: Receive, response: _Response) -> None:
        length = Headers(scope=scope).get("content-length", "")
        body = _Body(receive, self.settings.max_body, expected=scope["method"] == "POST")
        body.count(int(length[:19]) if length.isdecimal() else 0)
        answering = asyncio.ensure_future(self.app(scope, body.receive, response.send))
        leaving = asyncio.ensure_future(body.client_gone())
        try:
            await asyncio.wait((answering, leaving), timeout=self.settings.timeout, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
            elif leaving.done():
                scope["mmrh_status"] = CLIENT_CLOSED
            else:
                raise RequestError(504, f"The request took more than {self.settings.timeout:g} s. Ask for less.")
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)


class _Body:
    """A request's body, counted as it comes, and behind it the client's going away.

    What comes for an endpoint where no body is ``expected`` is passed over.
    """

    def __init__(self, receive: Receive, most: int, *, expected: bool) -> None:
        self._receive = receive
        self._most = most
        self._seen = 0
        self._read = asyncio.Event()
        self._gone = asyncio.Event()
        self._empty = not expected  # and not told so yet
        if not expected:
            self._read.set()

    def count(self, size: int) -> None:
        """Refuse a body that is longer than this, with 413."""
        if size > self._most:
            raise RequestError(413, f"The body has more than the {self._most:,} bytes that are taken. Send less.")

    async def receive(self) -> Message:
        """The next message for the app."""
        if self._empty:
            self._empty = False
            return {"type": "http.request", "body": b"", "more_body": False}
        if self._read.is_set():
            await self._gone.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._gone.set()
            self._read.set()
        self._seen += len(message.get("body", b""))
        self.count(self._seen)
        if not message.get("more_body", False):
            self._read.set()
        return message

    async def client_gone(self) -> None:
        """Return once the client has gone."""
        await self._read.wait()
        while not self._gone.is_set():
            if (await self._receive())["type"] == "http.disconnect":
                self._gone.set()


class _Response:
    """A response on its way, which knows whether it has begun. Before its end the place is given back."""

    def __init__(self, send: Send, place: contextlib.ExitStack) -> None:
        self._send = send
        self._place = place
        self.begun = False

    async def send(self, message: Message) -> None:
        """Pass a message on."""
        self.begun = True
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._place.close()
        await self._send(message)
