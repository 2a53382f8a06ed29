"""Requests that would take more than they may: memory, the event loop, somebody else's browser."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import tracemalloc
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")

from fastapi.testclient import TestClient

import mmrh_retriever
from mmrh_retriever import Reranker
from mmrh_retriever.adapters.settings import DocumentSettings
from mmrh_retriever.serving import rerank_routes
from tests.serving.conftest import client_of, upload, wait_until_ready
from tests.serving.held_model import HeldModel, running
from tests.serving.test_process import served

JSON = {"content-type": "application/json"}
MIB = 1024**2


def test_headers_without_an_end_are_not_kept() -> None:
    with served() as (_, client, _lines):
        address = str(client.base_url.host), client.base_url.port or 0
        with socket.create_connection(address, timeout=30) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: ")
            with pytest.raises(OSError, match=r"."):  # refused, and the connection is cut
                connection.sendall(b"a" * (64 * MIB))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/rerank", b'{"query": "a", "documents": [' + b"0," * 200_000 + b"0]}"),
        ("/v1/rerank", b'{"query": "a", "documents": [{"content": [' + b"0," * 200_000 + b"0]}]}"),
        ("/rerank", b'{"query": "a", "texts": [' + b"0," * 200_000 + b"0]}"),
        ("/v1/rank", b'{"query": "a", "files": [' + b"0," * 200_000 + b"0]}"),
        ("/v1/rank", b'{"queries": [' + b"0," * 200_000 + b'0], "files": []}'),
        ("/v1/rank", json.dumps({str(number): 0 for number in range(100_000)}).encode()),
        ("/rerank", json.dumps({"texts": ["a"], **{str(number): 0 for number in range(100_000)}}).encode()),
    ],
    ids=range(7),
)
def test_many_mistakes_in_a_body_cost_little(client: TestClient, path: str, body: bytes) -> None:
    tracemalloc.start()
    try:
        answer = client.post(path, content=body, headers=JSON)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answer.status_code == 422
    assert peak < 40 * MIB, f"{peak:,} bytes for a body of {len(body):,}"  # a list of what is wrong has hundreds


@pytest.mark.asyncio
async def test_texts_are_cut_while_others_are_answered(bundled: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    loops: list[bool] = []
    cut = rerank_routes.cut_text

    def watched(*given: object) -> object:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            loops.append(False)
        else:
            loops.append(True)
        return cut(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(rerank_routes, "cut_text", watched)
    async with running(bundled) as (_, client):
        body = {"query": "Who?", "documents": ["The mayor. " * 50, "A tree."], "max_tokens_per_doc": 4}
        assert (await client.post("/v1/rerank", json=body)).status_code == 200
    assert loops == [False, False]


def test_refusals_name_no_folder_of_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "secret" / "small-model"
    shutil.copytree(Path(mmrh_retriever.__file__).parent / "data" / "reader", folder)
    with client_of(None, DocumentSettings(model=str(folder))) as client:
        wait_until_ready(client)
        answer = client.post("/v2/rerank", json={"query": "Who?", "documents": ["word " * 100_000]})
    assert (answer.status_code, "small-model reads images alone" in answer.text) == (422, True), answer.text
    assert "secret" not in answer.text


def test_pages_of_other_sites_are_sent_away(client: TestClient, small_png: bytes) -> None:
    """A form of theirs is sent to this machine by its right name, and without asking first."""
    for origin in ("https://evil.example", "http://localhost.evil.example:80", "null", "http://192.0.2.1"):
        answer = client.post("/v1/files", files={"file": ("a.png", small_png)}, headers={"origin": origin})
        assert (answer.status_code, answer.json()["error"]["type"]) == (403, "forbidden"), origin
    for origin in ("http://localhost:3000", "http://127.0.0.1", "http://[::1]:8000"):
        answer = client.post("/v1/files", files={"file": ("a.png", small_png)}, headers={"origin": origin})
        assert answer.status_code == 200, origin


@pytest.mark.asyncio
@pytest.mark.parametrize("picture", [False, True])
async def test_a_file_that_is_deleted_while_it_is_asked(bundled: Reranker, small_pdf: bytes, picture: bool) -> None:
    async with running(bundled.with_store(None)) as (app, client):
        file = (await client.post("/v1/files", files={"file": ("report.pdf", small_pdf)})).json()["id"]
        model = HeldModel(app.state.service.reranker, held=True)
        body, address = {"query": "Which risks?", "files": [file]}, f"/v1/files/{file}/pages/1.png?query=Risks"
        asking = asyncio.create_task(client.get(address) if picture else client.post("/v1/rank", json=body))
        await model.has_begun()
        assert (await client.delete(f"/v1/files/{file}")).status_code == 200
        model.open.set()
        answer = await asking
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found"), answer.text


def test_a_damaged_file_is_not_ranked_and_comes_back(bundled: Reranker, small_pdf: bytes, tmp_path: Path) -> None:
    with client_of(bundled, files=str(tmp_path)) as client:
        file = upload(client, small_pdf)["id"]
    content = tmp_path / f"{file}.mmrh-file"
    content.write_bytes(small_pdf[:-200] + b"#" + small_pdf[-199:])
    with client_of(bundled, files=str(tmp_path)) as client:
        wait_until_ready(client)
        body = {"query": "Which risks?", "files": [file]}
        assert client.post("/v1/rank", json=body).status_code == 404
        assert client.get(f"/v1/files/{file}").status_code == 404
        assert upload(client, small_pdf)["id"] == file
        assert content.read_bytes() == small_pdf
        assert client.post("/v1/rank", json=body).status_code == 200
