"""A server as a process: started by ``mmrh serve``, asked over loopback, and ended while it works."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")

from mmrh_retriever.cli.main import main
from tests.serving.conftest import small_pages

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "mmrh_retriever", "serve"]


@contextmanager
def served(*options: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client, list[str]]]:
    """A process that serves, a client of it, and the lines of its stderr so far."""
    process = subprocess.Popen([*PROGRAM, "--port", "0", *options], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr is not None
    lines: list[str] = []
    address = None
    for line in process.stderr:
        lines.append(line)
        if address := re.search(r"http://127\.0\.0\.1:\d+", line):
            break
    reading = threading.Thread(target=lines.extend, args=(process.stderr,), daemon=True)
    reading.start()
    assert address is not None, "".join(lines)
    try:
        with httpx.Client(base_url=address[0], timeout=120) as client:
            until(lambda: answers(client, "/readyz"))
            yield process, client, lines
    finally:
        process.kill()
        process.wait()
        reading.join()


def answers(client: httpx.Client, path: str) -> bool:
    try:
        return client.get(path).status_code == 200
    except httpx.TransportError:
        return False


def until(condition: object) -> None:
    for _ in range(1200):
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.05)
    raise TimeoutError


def test_a_server_answers_and_finishes_what_runs_when_it_is_ended(tmp_path: Path) -> None:
    kept, encoded = tmp_path / "files", tmp_path / "encoded"
    with served("--files", str(kept), "--store", str(encoded)) as (process, client, lines):
        assert any("programs on this machine, without a key" in line for line in lines)
        pages = small_pages(*(f"This is page {number} of the report." for number in range(1, 4)))
        file = client.post("/v1/files", files={"file": ("report.pdf", pages)}).json()
        found: list[httpx.Response] = []
        body = {"query": "Which page is this?", "files": [file["id"]]}
        asking = threading.Thread(target=lambda: found.append(client.post("/v1/rank", json=body)))
        asking.start()
        until(lambda: "mmrh_passes_total 1.0" in httpx.get(f"{client.base_url}/metrics").text)
        process.send_signal(signal.SIGTERM)
        asking.join(120)
        assert process.wait(60) == 0
    assert [answer.status_code for answer in found] == [200]
    assert len(found[0].json()["rankings"][0]["results"]) == 3
    assert any(re.search(r"INFO POST /v1/rank 200 \d+\.\d+ s [0-9a-f]{32}$", line) for line in lines), lines
    assert (len(list(kept.iterdir())), len(list(encoded.glob("*.mmrh-page.safetensors")))) == (2, 3)


@pytest.fixture
def own_logging() -> Iterator[None]:
    """The command sends the log of its process elsewhere, and takes over a signal."""
    logger, handler = logging.getLogger("mmrh_retriever.serving"), signal.getsignal(signal.SIGTERM)
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate, level = before
    logger.setLevel(level)
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "--host '0.0.0.0' can be reached from other machines"),  # noqa: S104
        (["--api-key-file", "no-such-file"], "no such file"),
        (["--model", "tests"], "The model could not be loaded"),
    ],
)
def test_what_can_not_be_served_is_said(capfd: pytest.CaptureFixture[str], options: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--port", "0", *options])
    stderr = capfd.readouterr().err
    assert (ended.value.code, said in stderr, "Traceback" in stderr) == (1, True, False), stderr


def test_the_extra_is_named_where_it_is_missing(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit) as ended:
        main(["serve"])
    assert (ended.value.code, "mmrh-retriever[serve]" in capfd.readouterr().err) == (1, True)


def test_only_the_server_imports_fastapi() -> None:
    sources = [path for path in (ROOT / "mmrh_retriever").rglob("*.py") if path.parent.name != "serving"]
    importing = re.compile(r"^\s*(import|from) (fastapi|starlette|prometheus_client)", re.MULTILINE)
    assert [path for path in sources if importing.search(path.read_text(encoding="utf-8"))] == []
    assert importing.search((ROOT / "mmrh_retriever/serving/app.py").read_text(encoding="utf-8"))
