"""The description of the endpoints is whole, and nothing is loaded from elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

PATHS = {
    "/healthz": ["get"], "/readyz": ["get"], "/metrics": ["get"], "/v1/models": ["get"],
    "/v1/rerank": ["post"], "/v2/rerank": ["post"], "/rerank": ["post"], "/v1/rank": ["post"],
    "/v1/files": ["get", "post"], "/v1/files/{file_id}": ["delete", "get"],
    "/v1/files/{file_id}/pages/{number}.png": ["get"],
}  # fmt: skip


@pytest.fixture(scope="module")
def described(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def test_every_endpoint_is_described(described: dict[str, Any]) -> None:
    assert {path: sorted(methods) for path, methods in described["paths"].items()} == PATHS


def test_every_endpoint_lists_its_refusals(described: dict[str, Any]) -> None:
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            statuses = set(operation["responses"])
            if path != "/healthz":
                assert {"200", "401", "403", "429", "500", "504"} <= statuses, path
            if method == "post":
                assert {"400", "413", "422"} <= statuses, path
            assert "HTTPValidationError" not in str(operation), path


def test_documents_may_have_any_of_their_shapes(described: dict[str, Any]) -> None:
    items = described["components"]["schemas"]["RerankBody"]["properties"]["documents"]["items"]
    assert [shape.get("$ref", shape.get("type")).rpartition("/")[2] for shape in items["anyOf"]] == [
        "string", "TextDocument", "ImageDocument", "ContentDocument", "PdfDocument"
    ]  # fmt: skip


def test_no_page_of_documentation_loads_from_elsewhere(client: TestClient) -> None:
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404
