"""A browser, a started server, and pages that are watched: what they ask for, and what their console says."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")
pytest.importorskip("playwright", reason="the page is tested with playwright")

import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright

from mmrh_retriever import Reranker
from mmrh_retriever.serving.app import create_app
from mmrh_retriever.serving.settings import ServerSettings

CHROMIUM = os.environ.get("CHROMIUM") or next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
"""A browser on this machine, or ``None``."""
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE = 60_000
"""Milliseconds after which a page counts as stuck."""
REFUSED = "Failed to load resource"
"""What the console says of every answer that is a refusal, also of those that a test wants."""


@contextmanager
def browser() -> Iterator[Browser]:
    """A Chromium without a window."""
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


@contextmanager
def serving(reranker: Reranker | None = None, **settings: Any) -> Iterator[str]:
    """A started server's address; its model is ready."""
    config = uvicorn.Config(create_app(ServerSettings(**settings), reranker=reranker), port=0, log_level="warning")
    server, listening = uvicorn.Server(config), config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        while not server.started or httpx.get(f"{address}/readyz").status_code != 200:
            time.sleep(0.05)
        yield f"{address}/"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def watched(started: Browser, address: str, where: str = "", **options: Any) -> Iterator[Page]:
    """A page of the server at ``address``. It must ask nobody else for anything, and its console must stay empty."""
    context = started.new_context(**options)
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda line: said.append(f"{line.type}: {line.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(address + where)
    yield page
    context.close()
    assert [url for url in asked if not url.startswith((address, f"blob:{address}"))] == []
    assert [line for line in said if REFUSED not in line] == []
