"""Replicas on a local Ray cluster, one of them killed while it answers."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pymupdf
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from mmrh_retriever import Reranker, SettingsError, read_pdf
from mmrh_retriever.cli.main import app as cli
from mmrh_retriever.serving.errors import RequestError
from mmrh_retriever.serving.forwarding import Forwarded, Returned
from mmrh_retriever.serving.ray_deployment import (
    APP,
    MAX_ATTEMPTS,
    REPLICA_HEADER,
    ClusterSettings,
    Door,
    Replica,
    application,
    deployed,
    wait_for_end,
)
from mmrh_retriever.serving.settings import ServerSettings

pytest.importorskip("ray.serve", reason="pip install 'mmrh-retriever[serve,serve-ray]' to serve on a cluster")

WORDS = ["apples", "revenue rose by 5 percent", "lifeboats and trains"]
QUESTIONS = ["How did revenue change?", "Where are the lifeboats?", "Which fruit?", "What of trains?"]


@contextmanager
def local_ray() -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 1024**2)
    try:
        yield ray
    finally:
        ray.shutdown()


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.mark.slow
def test_a_killed_replicas_requests_are_answered_elsewhere(bundled: Reranker, tmp_path: Path) -> None:
    document = pymupdf.open()
    for words in WORDS:
        document.new_page(width=300, height=400).insert_text((20, 50), words)
    document.save(tmp_path / "a.pdf")
    settings = ServerSettings(port=free_port(), files=str(tmp_path / "files"), pdf_seconds=60)
    two = ClusterSettings(replicas=2, replica_cpus=0.1)
    with (
        local_ray() as ray,
        deployed(settings, two),
        httpx.Client(base_url=f"http://127.0.0.1:{settings.port}", timeout=60) as client,
    ):
        file = client.post("/v1/files", files={"file": ("a.pdf", (tmp_path / "a.pdf").read_bytes())}).json()["id"]
        holder = client.get(f"/v1/files/{file}").headers[REPLICA_HEADER]

        def ask(question: str) -> httpx.Response:
            return client.post("/v1/rank", json={"query": question, "files": [file]})

        with ThreadPoolExecutor(len(QUESTIONS)) as threads:
            asked = [threads.submit(ask, question) for question in QUESTIONS]
            time.sleep(0.3)  # they are with the holder now, which encodes the pages
            ray.kill(ray.get_actor(f"SERVE_REPLICA::{APP}#Replica#{holder}", namespace="serve"))
            answers = [answer.result() for answer in asked]
        again = ask(QUESTIONS[0])
        lost = client.get("/metrics").text
    assert [answer.status_code for answer in answers] == [200] * len(QUESTIONS), [a.text for a in answers if a.is_error]
    assert f"mmrh_asked_again {len(QUESTIONS)}.0" in lost
    assert holder not in {answer.headers[REPLICA_HEADER] for answer in [*answers, again]}
    pages = read_pdf(tmp_path / "a.pdf")
    for question, answer in zip([*QUESTIONS, QUESTIONS[0]], [*answers, again], strict=True):
        expected = bundled.rank(question, pages)
        results = answer.json()["rankings"][0]["results"]
        assert [result["page"] for result in results] == [scored.page.number for scored in expected]
        assert [result["score"] for result in results] == pytest.approx([scored.score for scored in expected], abs=1e-5)


class Losing:
    """A handle whose replicas are lost so many times, as Ray reports it."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.sessions: list[str] = []
        self.answer = self

    def options(self, session_id: str) -> Losing:
        self.sessions.append(session_id)
        return self

    async def remote(self, request: Forwarded) -> Returned:
        from ray.exceptions import ActorDiedError

        if len(self.sessions) <= self.times:
            raise ActorDiedError
        return Returned(200, (), request.body)


def test_a_request_that_kills_every_replica_is_given_up() -> None:
    request = Forwarded("POST", "/v1/rank", (), b"body")
    kept = Losing(MAX_ATTEMPTS - 1)
    door = Door(ServerSettings(), None, kept)
    assert asyncio.run(door._ask(request, "file")).body == b"body"
    assert kept.sessions == ["file"] * MAX_ATTEMPTS
    with pytest.raises(RequestError, match=f"{MAX_ATTEMPTS} replicas were lost"):
        asyncio.run(Door(ServerSettings(), None, Losing(MAX_ATTEMPTS))._ask(request, ""))


class Waiting:
    """A handle whose replica does not answer, and which is told when nobody waits any more."""

    def __init__(self) -> None:
        self.answer = self
        self.taken_back = False

    def options(self, session_id: str) -> Waiting:
        return self

    def remote(self, request: Forwarded) -> Waiting:
        return self

    def __await__(self) -> Generator[Any, None, None]:
        return asyncio.sleep(60).__await__()

    def cancel(self) -> None:
        self.taken_back = True


def test_who_goes_away_takes_the_request_back() -> None:
    handle = Waiting()
    door = Door(ServerSettings(), None, handle)
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(door._ask(Forwarded("GET", "/v1/models", (), b""), ""), 0.05))
    assert handle.taken_back


def test_the_door_counts_what_it_asks_again() -> None:
    door = Door(ServerSettings(), None, Losing(1))
    client = TestClient(door.__serve_build_asgi_app__(), base_url="http://127.0.0.1")
    assert client.get("/v1/models").status_code == 200
    assert "mmrh_asked_again 1.0" in client.get("/metrics").text


def test_the_command_ends_when_it_is_told() -> None:
    kept = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        wait_for_end()
    finally:
        for kind, handler in kept.items():
            signal.signal(kind, handler)


def test_a_replica_is_ready_when_it_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ray import serve

    class Context:
        class replica_id:  # noqa: N801 - Ray's name
            unique_id = "one"

    monkeypatch.setattr(serve, "get_replica_context", lambda: Context)

    async def made_and_asked(settings: ServerSettings) -> Returned:
        replica = Replica.__new__(Replica)
        await replica.__init__(settings)  # type: ignore[misc] # Ray awaits it
        return await replica.answer(Forwarded("GET", "/readyz", (), b""))

    found = asyncio.run(made_and_asked(ServerSettings(files=str(tmp_path))))
    assert (found.status, dict(found.headers)[REPLICA_HEADER]) == (200, "one")
    nowhere = ServerSettings(documents={"model": str(tmp_path)}, files=str(tmp_path))
    with pytest.raises(Exception, match=str(tmp_path)):
        asyncio.run(made_and_asked(nowhere))


def test_limits_and_scaling_are_the_clusters(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("0123456789abcdef")
    settings = ServerSettings(files=str(tmp_path), api_key_file=str(keys), host="192.0.2.1", max_queue=7)
    door = application(settings, ClusterSettings(replicas=2, max_replicas=5, replica_gpus=1))._bound_deployment
    before, given, behind = door.init_args
    assert (before.max_queue, len(given.hashes)) == (35, 1)
    replica = behind._bound_deployment
    (inner,) = replica.init_args
    assert (inner.api_key_file, inner.host, inner.max_queue) == (None, "127.0.0.1", 7)
    assert (replica.max_ongoing_requests, replica.ray_actor_options["num_gpus"]) == (7, 1)
    scaling = replica._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"replicas": 0}, "replicas"), ({"replicas": 3, "max_replicas": 2}, "max_replicas=2"), ({"cpus": 1}, "cpus")],
)
def test_a_cluster_that_can_not_be(given: dict[str, int], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ClusterSettings(**given)


def test_what_a_cluster_needs_is_said() -> None:
    shown = CliRunner().invoke(cli, ["serve", "--ray", "--replicas", "2"])
    assert shown.exit_code != 0
    assert "files" in str(shown.exception or shown.output)
    with pytest.raises(SettingsError, match="port=0"), deployed(ServerSettings(port=0, files="f"), ClusterSettings()):
        pass


def test_without_ray_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    with pytest.raises(ImportError, match=r"mmrh-retriever\[serve,serve-ray\]"):
        application(ServerSettings(files="f"), ClusterSettings())
