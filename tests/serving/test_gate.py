"""Who gets in, what a request may take, and what becomes of one whose client has gone."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")

from fastapi.testclient import TestClient

from mmrh_retriever import Reranker, SettingsError
from mmrh_retriever.serving.settings import ServerSettings
from tests.serving.conftest import client_of
from tests.serving.held_model import HeldModel, RawRequest, running

BODY = {"query": "Who?", "documents": ["The mayor.", "A tree."]}
OTHER = {"query": "Where?", "documents": ["At home.", "In town."]}


def own(reranker: Reranker) -> Reranker:
    """A reranker on the same model, to be held alone."""
    return reranker.with_store(None)


@pytest.mark.asyncio
async def test_over_the_queue_requests_are_sent_away(bundled: Reranker) -> None:
    reranker = own(bundled)
    async with running(reranker, max_queue=2) as (app, client):
        model = HeldModel(app.state.service.reranker, held=True)
        waiting = [asyncio.create_task(client.post("/v1/rerank", json=body)) for body in (BODY, OTHER)]
        await model.has_begun()
        while len(app.state.service.joining) < 1:
            await asyncio.sleep(0.01)
        refused = await client.post("/v2/rerank", json=BODY)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert list(refused.json()) == ["message"]
        assert (await client.get("/healthz")).status_code == 200
        model.open.set()
        assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200, 200]
        assert (await client.post("/v2/rerank", json=BODY)).status_code == 200


@pytest.mark.asyncio
async def test_who_has_an_answer_may_ask_again(bundled: Reranker) -> None:
    async with running(own(bundled), max_queue=1) as (app, client):
        again: list[int] = []

        class Quick(RawRequest):
            async def send(self, message: Any) -> None:
                await super().send(message)
                if message["type"] == "http.response.body":
                    again.append((await client.post("/v1/rerank", json=OTHER)).status_code)

        request = Quick.of_json("/v1/rerank", BODY)
        await app(request.scope, request.receive, request.send)
        assert (request.status, again) == (200, [200])


@pytest.mark.asyncio
async def test_a_client_that_goes_away_frees_its_place(bundled: Reranker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mmrh_retriever.serving")
    async with running(own(bundled), max_queue=2) as (app, client):
        model = HeldModel(app.state.service.reranker, held=True)
        first, second = RawRequest.of_json("/v1/rerank", BODY), RawRequest.of_json("/v1/rerank", OTHER)
        tasks = [asyncio.create_task(app(one.scope, one.receive, one.send)) for one in (first, second)]
        await model.has_begun()
        while len(app.state.service.joining) < 1:
            await asyncio.sleep(0.01)
        second.gone.set()  # it waits in the queue
        await tasks[1]
        assert (len(app.state.service.joining), second.status) == (0, None)
        first.gone.set()  # its pass runs
        await tasks[0]
        assert (
            await client.post("/v1/rerank", json=BODY | {"documents": ["a\0"]})
        ).status_code == 422  # a place is free
        model.open.set()
        assert (await client.post("/v1/rerank", json=OTHER)).status_code == 200
        assert model.passes == [["Who?"], ["Where?"]]  # the second request was never asked
    assert [record.args[2] for record in caplog.records if record.args and record.args[2] == 499] == [499, 499]


@pytest.mark.asyncio
async def test_a_client_that_wants_a_picture_no_more(bundled: Reranker, small_pdf: bytes) -> None:
    async with running(own(bundled)) as (app, client):
        file = (await client.post("/v1/files", files={"file": ("report.pdf", small_pdf)})).json()["id"]
        model = HeldModel(app.state.service.reranker, held=True)
        request = RawRequest(f"/v1/files/{file}/pages/1.png?query=Who", [b""], method="GET")
        task = asyncio.create_task(app(request.scope, request.receive, request.send))
        await model.has_begun()
        request.gone.set()
        await task
        assert (request.status, len(app.state.service.joining)) == (None, 0)
        model.open.set()


@pytest.mark.asyncio
async def test_a_client_that_goes_away_in_its_body(bundled: Reranker) -> None:
    async with running(own(bundled)) as (app, _):
        request = RawRequest("/v1/rerank", [])
        task = asyncio.create_task(app(request.scope, request.receive, request.send))
        await asyncio.sleep(0.05)
        assert not task.done()
        request.gone.set()
        await task
        assert request.status in (None, 400)  # nobody reads it


@pytest.mark.asyncio
@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
async def test_a_request_ends_when_its_time_is_up(bundled: Reranker, path: str) -> None:
    async with running(own(bundled), timeout=0.3) as (app, client):
        model = HeldModel(app.state.service.reranker, held=True)
        answer = await client.post(path, json=BODY)
        assert answer.status_code == 504
        assert answer.json()["message"].startswith("The request took more than 0.3 s")
        model.open.set()


@pytest.mark.asyncio
async def test_a_body_is_counted_while_it_comes(bundled: Reranker) -> None:
    async with running(own(bundled), max_body=1000) as (app, client):
        endless = RawRequest("/v2/rerank", [b"x" * 300] * 100)
        await app(endless.scope, endless.receive, endless.send)
        assert (endless.status, endless.taken) == (413, 4)
        assert list(endless.answer) == ["message"]
        announced = RawRequest("/v1/files", [b"x"] * 10, {"content-length": "1001"})
        await app(announced.scope, announced.receive, announced.send)
        assert (announced.status, announced.taken) == (413, 0)
        assert announced.answer["error"]["type"] == "too_large"
        upload = await client.post("/v1/files", files={"file": ("x.png", b"x" * 2000)})
        assert upload.status_code == 413


def test_strangers_are_sent_away_where_there_are_no_keys(client: TestClient) -> None:
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "127.0.0.2:1"):
        assert client.get("/healthz", headers={"host": host}).status_code == 200, host
    for host in ("evil.example", "localhost.evil.example", "169.254.1.1:80", ""):
        answer = client.post("/v1/rerank", json=BODY, headers={"host": host})
        assert (answer.status_code, answer.json()["error"]["type"]) == (403, "forbidden"), host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.com", ""])  # noqa: S104
def test_without_keys_the_server_listens_to_this_machine_only(host: str) -> None:
    with pytest.raises(SettingsError, match="there are no API keys"):
        ServerSettings(host=host)


@pytest.mark.parametrize("host", ["localhost", "::1", "127.0.0.53"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert ServerSettings(host=host).host == host


def test_settings_are_checked() -> None:
    for wrong in ({"unknown": 1}, {"max_body": 0}, {"port": 70000}, {"documents": {"page_memory": -1}}):
        with pytest.raises(SettingsError):
            ServerSettings(**wrong)


def test_too_much_is_refused(bundled: Reranker) -> None:
    with client_of(bundled, max_documents=1, max_question=5, max_questions=1) as client:
        while client.get("/readyz").status_code != 200:
            pass
        for path, body, said in (
            ("/v1/rerank", BODY, "2 documents"),
            ("/v1/rerank", {"query": "abcdef", "documents": ["a"]}, "6 characters"),
            ("/v1/rank", {"queries": ["a", "b"], "files": ["0" * 64]}, "2 questions"),
        ):
            answer = client.post(path, json=body)
            assert (answer.status_code, said in answer.text) == (413, True), answer.text


def test_before_the_model_is_there_requests_are_told_so(bundled: Reranker) -> None:
    client = client_of(bundled)  # not entered: its lifespan has not begun
    assert client.get("/healthz").json() == {"status": "ok"}
    for answer in (client.get("/readyz"), client.post("/rerank", json={"query": "a", "texts": ["b"]})):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["error_type"] == "Unhealthy"


HOSTILE: list[tuple[bytes, str]] = [
    (b"{", "application/json"),
    (b"", "application/json"),
    (b"[]", "application/json"),
    (b"\xff\xfe", "application/json"),
    (b'{"query": "\\ud800", "documents": ["a"]}', "application/json"),
    (b'{"query": "a", "documents": ["\\udfff"]}', "application/json"),
    (b'{"query": "a", "documents": ["b"], "top_n": %s}' % (b"9" * 6000), "application/json"),
    (b'{"query": "a", "documents": ["b"], "top_n": 1e400}', "application/json"),
    (b'{"query": "a", "documents": ["b"], "top_n": NaN}', "application/json"),
    (b'{"query": "a", "documents": %s}' % (b"[" * 100_000), "application/json"),
    (b'{"query": "a", "documents": [{"content": [{"type": "\\ud800"}]}]}', "application/json"),
    (json.dumps(BODY).encode(), "text/plain"),
    (json.dumps(BODY).encode(), "application/x-www-form-urlencoded"),
]


@pytest.mark.parametrize(("content", "kind"), HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank", "/v1/rank"])
def test_broken_bodies_are_refused(client: TestClient, path: str, content: bytes, kind: str) -> None:
    answer = client.post(path, content=content, headers={"content-type": kind})
    assert answer.status_code in (400, 422)
    assert isinstance(answer.json(), dict)


def test_fields_with_lone_surrogates_are_refused(client: TestClient) -> None:
    body = b'{"query": "a", "files": ["' + b"0" * 64 + b'"], "\\ud800": 1}'
    answer = client.post("/v1/rank", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, "unicode" in answer.json()["error"]["message"]) == (422, True)


def test_a_huge_top_n_is_all(client: TestClient) -> None:
    answer = client.post("/v1/rerank", json=BODY | {"top_n": 10**30})
    assert (answer.status_code, len(answer.json()["results"])) == (200, 2)


def test_unknown_paths_and_methods_are_refused_in_our_form(client: TestClient) -> None:
    answer: httpx.Response = client.get("/nothing")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, 404)
    answer = client.get("/v2/rerank")
    assert (answer.status_code, list(answer.json()), answer.headers["allow"]) == (405, ["message"], "POST")
    assert client.options("/v1/files").headers["allow"] == "GET, POST"
    assert client.put("/v1/files/" + "0" * 64).headers["allow"] == "DELETE, GET"
