"""The door before several servers: what it checks itself, what it hands on, and where."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from starlette.responses import Response
from starlette.types import ASGIApp

from mmrh_retriever import Reranker
from mmrh_retriever.serving import status_routes
from mmrh_retriever.serving.app import ROUTERS, create_app
from mmrh_retriever.serving.forwarding import Forwarded, Returned, answer_of, create_door, session_of
from mmrh_retriever.serving.keys import Keys
from mmrh_retriever.serving.metrics import Metrics
from mmrh_retriever.serving.settings import ServerSettings
from tests.ranking_stub import png
from tests.serving.conftest import LOCAL, wait_until_ready

KEY = "0123456789abcdef0123"
ROUTES = [route for router in (status_routes.probes, *ROUTERS) for route in router.routes]


class Handed:
    """Hands requests on to an app that runs in a loop of its own, and notes them with their sessions."""

    def __init__(self, app: ASGIApp, loop: asyncio.AbstractEventLoop) -> None:
        self.app = app
        self.loop = loop
        self.seen: list[tuple[Forwarded, str]] = []

    async def __call__(self, request: Forwarded, session: str) -> Returned:
        self.seen.append((request, session))
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(answer_of(self.app, request), self.loop))


@pytest.fixture(scope="module")
def handed(bundled: Reranker) -> Iterator[Handed]:
    app = create_app(ServerSettings(), reranker=bundled)
    with TestClient(app, base_url=LOCAL) as client:
        wait_until_ready(client)
        yield Handed(app, client.portal.call(asyncio.get_running_loop))


def door(handed: Handed, keys: Keys | None = None, **settings: object) -> TestClient:
    return TestClient(create_door(ServerSettings(**settings), keys, handed, ROUTES, Metrics()), base_url=LOCAL)


def test_an_answer_comes_back_as_it_is(handed: Handed) -> None:
    before = door(handed)
    body = {"query": "revenue?", "documents": ["Cats sleep.", "Revenue rose."], "top_n": 1}
    answer = before.post("/v1/rerank?a=%2F", json=body, headers={"traceparent": "00-1-2-00"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert [result["index"] for result in answer.json()["results"]] == [1]
    request, session = handed.seen[-1]
    assert (request.method, request.target, session) == ("POST", "/v1/rerank?a=%2F", "")
    assert dict(request.headers)["traceparent"] == "00-1-2-00"
    refused = before.post("/v2/rerank", json={"query": "?"})
    assert (refused.status_code, list(refused.json())) == (422, ["message"])


def test_requests_about_a_file_have_its_session(handed: Handed) -> None:
    before = door(handed)
    file = before.post("/v1/files", files={"file": ("a.png", png())}).json()["id"]
    assert before.post("/v1/rank", json={"query": "revenue?", "files": [file]}).status_code == 200
    assert before.get(f"/v1/files/{file}/pages/1.png").headers["content-type"] == "image/png"
    assert before.delete(f"/v1/files/{file}").json()["deleted"] is True
    assert [session for _, session in handed.seen[-4:]] == ["", file, file, file]


def test_of_several_files_the_first_by_name_counts() -> None:
    first, second = "a" * 64, "b" * 64
    body = f'{{"query": "?", "files": ["{second}", "{first}"]}}'.encode()
    assert session_of("/v1/rank", body) == first
    surrogate, deep = b'{"files": ["\\ud800"]}', b"[" * 10**6
    for wrong in (b"", b"[]", b'{"files": 3}', b'{"files": []}', b'{"files": [1]}', b"\xff", surrogate, deep):
        assert session_of("/v1/rank", wrong) == ""
    assert session_of("/v1/rerank", body) == session_of("/v1/files/abc", b"") == ""


def test_the_door_has_the_keys(handed: Handed, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEY)
    before = door(handed, Keys.of_file(tmp_path / "keys", 60), api_key_file=str(tmp_path / "keys"), host="192.0.2.1")
    count = len(handed.seen)
    assert before.get("/v1/models").status_code == 401
    assert len(handed.seen) == count
    assert before.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
    assert "authorization" not in dict(handed.seen[-1][0].headers)


def test_too_much_is_refused_at_the_door(handed: Handed) -> None:
    count = len(handed.seen)
    answer = door(handed, max_body=10).post("/v1/rerank", content=b"x" * 11)
    assert (answer.status_code, len(handed.seen)) == (413, count)


def test_health_and_metrics_are_the_doors_own(handed: Handed) -> None:
    before, count = door(handed), len(handed.seen)
    assert before.get("/healthz").json() == {"status": "ok"}
    before.get("/v1/models")
    before.get("/nowhere")
    text = before.get("/metrics").text
    assert len(handed.seen) == count + 2
    assert 'mmrh_requests_total{method="GET",route="/v1/models",status="200"} 1.0' in text
    assert 'mmrh_requests_total{method="GET",route="other",status="404"} 1.0' in text


def test_readyz_does_not_wait_for_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmrh_retriever.serving.forwarding._READY_SECONDS", 0.05)

    async def nobody(request: Forwarded, session: str) -> Returned:
        await asyncio.sleep(60)
        raise AssertionError

    before = TestClient(create_door(ServerSettings(), None, nobody, ROUTES, Metrics()), base_url=LOCAL)
    answer = before.get("/readyz")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["error"]["type"] == "unavailable"


def test_an_app_is_asked_in_its_process() -> None:
    async def echo(scope: dict, receive: object, send: object) -> None:  # type: ignore[type-arg]
        answer = Response(f"{scope['path']} {scope['query_string'].decode()}", 201, {"x-a": "b"})
        await answer(scope, receive, send)  # type: ignore[arg-type]

    found = asyncio.run(answer_of(echo, Forwarded("GET", "/a%20b?c=d", (), b"")))  # type: ignore[arg-type]
    assert (found.status, found.body, dict(found.headers)["x-a"]) == (201, b"/a b c=d", "b")
