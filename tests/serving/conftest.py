"""One server with the bundled model for all tests of the folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")

from fastapi.testclient import TestClient

from mmrh_retriever import Reranker
from mmrh_retriever.adapters.settings import DocumentSettings
from mmrh_retriever.serving.app import create_app
from mmrh_retriever.serving.settings import ServerSettings

LOCAL = "http://127.0.0.1"


@pytest.fixture(scope="session")
def bundled() -> Reranker:
    return Reranker.from_pretrained()


def client_of(reranker: Reranker, documents: DocumentSettings | None = None, **settings: Any) -> TestClient:
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
