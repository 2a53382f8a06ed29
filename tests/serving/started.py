"""A server in a thread, for clients that need an address."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from fastapi import FastAPI


@contextmanager
def started(app: FastAPI) -> Iterator[str]:
    """The address of an app that is served on a free port, with its model ready."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        while httpx.get(f"{address}/readyz").status_code != 200:
            time.sleep(0.05)
        yield address
    finally:
        server.should_exit = True
        thread.join()
