"""What the log and metrics say of requests: nothing of documents, file names and questions."""

from __future__ import annotations

import logging
import re

import pytest
from fastapi.testclient import TestClient

from mmrh_retriever import Reranker
from tests.serving.conftest import client_of, small_pages, upload, wait_until_ready

SECRET = "zanzibar"


def test_the_log_holds_no_content(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    file = upload(client, small_pages(f"The {SECRET} plan."), f"{SECRET}.pdf")
    question = f"What of {SECRET}?"
    client.post("/v1/rerank", json={"query": question, "documents": [SECRET, f"{SECRET}2"]})
    client.post("/v1/rerank", json={"query": question, "documents": [{"image": SECRET}]})
    client.post("/v1/rank", json={"query": question, "files": [file["id"]], "regions": 1})
    client.get(f"/v1/files/{file['id']}/pages/1.png", params={"query": question})
    client.post("/v1/files", files={"file": (f"{SECRET}.pdf", b"%PDF- " + SECRET.encode())})
    client.get(f"/{SECRET}")
    client.request(SECRET.upper(), "/healthz")
    ours = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore", "asyncio"))]
    lines = [record.getMessage() for record in ours if record.name == "mmrh_retriever.serving"]
    form = re.compile(r"(GET|POST|other) (/[\w/{}.]*|other) \d{3} \d+\.\d{3} s [0-9a-f]{32}")
    assert [line for line in lines if not form.fullmatch(line)] == []
    assert len(lines) == 8
    assert lines[4].startswith("GET /v1/files/{file_id}/pages/{number}.png 200")
    assert lines[6].startswith("GET other 404")
    assert not any(SECRET in (record.getMessage() + (record.exc_text or "")).lower() for record in ours)
    assert SECRET not in client.get("/metrics").text.lower()


def test_an_unexpected_error_says_where_and_not_what(bundled: Reranker, caplog: pytest.LogCaptureFixture) -> None:
    reranker = bundled.with_store(None)
    with client_of(reranker) as client:
        wait_until_ready(client)

        def failing(*_: object, **__: object) -> None:
            raise RuntimeError(f"what {SECRET} is")

        client.app.state.service.reranker.rank_many = failing  # type: ignore[attr-defined]
        answer = client.post("/v2/rerank", json={"query": SECRET, "documents": [SECRET]})
    assert (answer.status_code, answer.json()) == (
        500,
        {"message": "The server failed (RuntimeError). Its log says where."},
    )
    assert "in failing" in caplog.text
    assert SECRET not in "".join(record.getMessage() for record in caplog.records if record.name.startswith("mmrh"))


def test_metrics_count_by_template_and_status(client: TestClient) -> None:
    client.get("/v1/files/" + "0" * 64)
    client.get("/one")
    client.get("/two")
    text = client.get("/metrics").text
    assert re.search(r'mmrh_requests_total\{method="GET",route="/v1/files/\{file_id\}",status="404"\} [1-9]', text)
    assert re.search(r'mmrh_requests_total\{method="GET",route="other",status="404"\} ([2-9]|\d\d)', text)
    assert "mmrh_ready 1.0" in text


def test_each_answer_has_an_id_of_its_own(client: TestClient) -> None:
    ids = {client.get("/healthz", headers={"x-request-id": "mine"}).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    assert "mine" not in ids


def test_apps_count_for_themselves(client: TestClient, bundled: Reranker) -> None:
    client.get("/one")
    with client_of(bundled) as other:
        assert 'status="404"' not in other.get("/metrics").text
