"""The page for people: its files, sent with headers by which it loads nothing but them and pictures of pages."""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from mmrh_retriever.serving.gate import PAGE_PATH

FOLDER = Path(__file__).with_name("page")
"""``index.html`` is served at ``/``, the folder's files under ``/page/``."""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",  # pictures come with the API key, which an img can't send
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # no text becomes markup
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",  # a browser asks whether they changed
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def add_page(app: FastAPI) -> None:
    """Serve the page."""
    app.mount(PAGE_PATH, _PageFiles(directory=FOLDER), name="page")
    app.add_api_route("/", _index, include_in_schema=False)


async def _index() -> FileResponse:
    return FileResponse(FOLDER / "index.html", headers=HEADERS)


class _PageFiles(StaticFiles):
    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(HEADERS)
        return response
