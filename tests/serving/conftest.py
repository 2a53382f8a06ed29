"""One server with the bundled model for all tests of the folder, and small files for it."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")

import pymupdf
from fastapi.testclient import TestClient
from PIL import Image

from mmrh_retriever import Reranker
from mmrh_retriever.adapters.settings import DocumentSettings
from mmrh_retriever.serving.app import create_app
from mmrh_retriever.serving.settings import ServerSettings

LOCAL = "http://127.0.0.1"
TEXTS = ("Revenue rose by nine per cent in 2024.", "The ferry was painted green.", "Risks are reviewed every spring.")


@pytest.fixture(scope="session")
def bundled() -> Reranker:
    return Reranker.from_pretrained()


def client_of(reranker: Reranker | None, documents: DocumentSettings | None = None, **settings: Any) -> TestClient:
    given = ServerSettings(documents=documents or DocumentSettings(), **settings)
    return TestClient(create_app(given, reranker=reranker), base_url=LOCAL)


def wait_until_ready(client: TestClient) -> None:
    for _ in range(600):
        if client.get("/readyz").status_code == 200:
            return
        time.sleep(0.05)
    raise TimeoutError("the server did not become ready")


@pytest.fixture(scope="session")
def client(bundled: Reranker) -> Iterator[TestClient]:
    with client_of(bundled) as found:
        wait_until_ready(found)
        yield found


@pytest.fixture(scope="session")
def small_pdf() -> bytes:
    return small_pages(*TEXTS)


@pytest.fixture(scope="session")
def small_png() -> bytes:
    memory = io.BytesIO()
    Image.linear_gradient("L").resize((96, 64)).save(memory, format="PNG")
    return memory.getvalue()


def small_pages(*texts: str) -> bytes:
    """A PDF of small pages, whose encoding takes a moment."""
    with pymupdf.open() as document:
        for text in texts:
            document.new_page(width=220, height=160).insert_text((12, 40), text)
        return bytes(document.tobytes())


def upload(client: TestClient, content: bytes, name: str = "report.pdf") -> dict[str, Any]:
    answer = client.post("/v1/files", files={"file": (name, content)})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found
