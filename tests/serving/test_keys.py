"""Where there are keys, who has none is sent away, and each key has its own requests."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")

from fastapi.testclient import TestClient

from mmrh_retriever import DataError, Reranker, SettingsError
from mmrh_retriever.serving import keys
from mmrh_retriever.serving.app import create_app
from mmrh_retriever.serving.errors import RequestError
from mmrh_retriever.serving.keys import Keys
from mmrh_retriever.serving.settings import ServerSettings
from tests.serving.held_model import RawRequest

ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdef"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.txt"
    path.write_text(f"# who may ask\n{ALICE}\n\n  {BOB}  \n")
    return path


@pytest.fixture
def guarded(bundled: Reranker, key_file: Path) -> TestClient:
    settings = ServerSettings(host="0.0.0.0", api_key_file=key_file, requests_per_minute=3)  # noqa: S104
    return TestClient(create_app(settings, reranker=bundled))  # by any name: "testserver"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_only_who_has_a_key_may_ask(guarded: TestClient) -> None:
    assert guarded.get("/v1/models", headers=bearer(ALICE)).status_code == 200
    assert guarded.get("/v1/files", headers={"authorization": f"bearer  {BOB} "}).status_code == 200
    wrong = [{}, bearer(""), bearer(ALICE[:-1]), bearer(ALICE.upper()), bearer("ü" * 20), {"authorization": ALICE}]
    for headers in wrong:
        for path in ("/v1/models", "/metrics", "/v1/files", "/nothing", "/page"):
            answer = guarded.get(path, headers=[(k.encode(), v.encode()) for k, v in headers.items()])
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), (headers, path)
    assert guarded.post("/v2/rerank", json={}).json() == {
        "message": "Expected a known API key: the header Authorization: Bearer KEY."
    }


def test_a_key_may_have_any_letters(bundled: Reranker, tmp_path: Path) -> None:
    key = "schlüssel-à-0123456789"
    (tmp_path / "keys.txt").write_text(key, encoding="utf-8")
    client = TestClient(create_app(ServerSettings(api_key_file=tmp_path / "keys.txt"), reranker=bundled))
    for header, status in ((key.encode(), 200), (key.replace("à", "á").encode(), 401)):
        assert client.get("/v1/models", headers=[(b"authorization", b"Bearer " + header)]).status_code == status


def test_what_says_how_the_server_is_needs_no_key(guarded: TestClient) -> None:
    assert guarded.get("/healthz").status_code == 200
    assert guarded.get("/readyz").status_code == 503
    described = guarded.get("/openapi.json").json()
    assert described["paths"]["/v1/rank"]["post"]["security"] == [{"HTTPBearer": []}]
    assert "security" not in described["paths"]["/healthz"]["get"]


@pytest.mark.asyncio
async def test_nothing_of_a_body_is_read_before_the_key_is_known(guarded: TestClient) -> None:
    request = RawRequest("/v1/files", [b"x"] * 3)
    await guarded.app(request.scope, request.receive, request.send)  # type: ignore[arg-type]
    assert (request.status, request.taken) == (401, 0)


def test_each_key_has_its_own_requests(guarded: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(keys.time, "monotonic", lambda: now)
    statuses = [guarded.get("/v1/models", headers=bearer(ALICE)).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    refused = guarded.get("/v1/models", headers=bearer(ALICE))
    assert refused.headers["retry-after"] == "20"
    assert guarded.get("/v1/models", headers=bearer(BOB)).status_code == 200
    now += 20.5  # a third of a minute: one request of three
    assert [guarded.get("/v1/models", headers=bearer(ALICE)).status_code for _ in range(2)] == [200, 429]
    now += 3600
    assert [guarded.get("/v1/models", headers=bearer(ALICE)).status_code for _ in range(4)] == [200, 200, 200, 429]


def test_keys_are_not_shown(key_file: Path) -> None:
    held = Keys.of_file(key_file, 1)
    assert ALICE not in repr(held)
    with pytest.raises(RequestError) as refused:
        held.spend("Bearer stolen-key-0123456789")
    assert "stolen" not in str(refused.value.detail)


@pytest.mark.parametrize(("text", "error"), [("# none\n", "holds no API keys"), ("short\n", "fewer than 16")])
def test_files_without_good_keys_are_refused(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(text)
    with pytest.raises(SettingsError, match=error):
        create_app(ServerSettings(api_key_file=path))


def test_a_missing_file_of_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        create_app(ServerSettings(api_key_file=tmp_path / "none"))
