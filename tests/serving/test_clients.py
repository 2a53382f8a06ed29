"""Other projects' clients, unchanged, against a started server; schemathesis over its description."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mmrh_retriever import Page, PageStore, Reranker
from mmrh_retriever.serving.app import create_app
from mmrh_retriever.serving.settings import ServerSettings
from tests.serving.conftest import TEXTS
from tests.serving.started import started

QUESTION = "How did revenue change?"


def needed(name: str) -> ModuleType:
    found: ModuleType = pytest.importorskip(name, reason=f"{name} is not installed: pip install 'mmrh-retriever[dev]'")
    return found


@pytest.fixture(scope="module")
def address(bundled: Reranker) -> Iterator[str]:
    with started(create_app(ServerSettings(), reranker=bundled)) as found:
        yield found


@pytest.fixture(scope="module")
def expected(bundled: Reranker) -> list[tuple[int, float]]:
    """Indices and scores of the texts, best first, as the library gives them."""
    ranking = bundled.with_store(PageStore()).rank(QUESTION, [Page(text=text) for text in TEXTS])
    return [(scored.position, scored.score) for scored in ranking]


def same(found: list[tuple[int, float]], expected: list[tuple[int, float]]) -> bool:
    indices = [index for index, _ in found] == [index for index, _ in expected]
    return indices and [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-6)


@pytest.mark.parametrize("version", ["Client", "ClientV2"])
def test_cohere(address: str, expected: list[tuple[int, float]], version: str) -> None:
    client = getattr(needed("cohere"), version)(api_key="none", base_url=address)
    answer = client.rerank(model="any", query=QUESTION, documents=list(TEXTS), top_n=2)
    assert same([(one.index, one.relevance_score) for one in answer.results], expected[:2])


def test_cohere_raises_its_own_error(address: str) -> None:
    cohere = needed("cohere")
    with pytest.raises(cohere.UnprocessableEntityError, match="query"):
        cohere.ClientV2(api_key="none", base_url=address).rerank(model="any", query=" ", documents=list(TEXTS))


def test_langchain_cohere(address: str, expected: list[tuple[int, float]]) -> None:
    made = needed("langchain_cohere").CohereRerank(base_url=address, cohere_api_key="none", model="any", top_n=3)
    found = made.rerank([*TEXTS], QUESTION)
    assert same([(one["index"], one["relevance_score"]) for one in found], expected)


@pytest.mark.parametrize(
    ("module", "name", "base"),
    [
        ("llama_index.postprocessor.cohere_rerank", "CohereRerank", ""),
        ("llama_index.postprocessor.jinaai_rerank", "JinaRerank", "/v1"),
    ],
)
def test_llama_index(address: str, expected: list[tuple[int, float]], module: str, name: str, base: str) -> None:
    rerank = getattr(needed(module), name)(base_url=address + base, api_key="none", model="any", top_n=3)
    schema = needed("llama_index.core.schema")
    nodes = [schema.NodeWithScore(node=schema.TextNode(text=text, id_=str(i))) for i, text in enumerate(TEXTS)]
    found = rerank.postprocess_nodes(nodes, query_str=QUESTION)
    assert same([(int(one.node.node_id), one.score) for one in found], expected)


def test_curl(address: str, small_png: bytes, expected: list[tuple[int, float]]) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")

    def asked(path: str, body: dict[str, Any]) -> Any:
        command = [curl, "-sf", f"{address}{path}", "-H", "Content-Type: application/json", "-d", json.dumps(body)]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)

    plain = asked("/rerank", {"query": QUESTION, "texts": list(TEXTS)})
    assert same([(one["index"], one["score"]) for one in plain], expected)
    image = {"image": base64.b64encode(small_png).decode()}
    shown = asked("/v1/rerank", {"query": QUESTION, "documents": [image, *TEXTS], "top_n": 1})
    assert len(shown["results"]) == 1


@pytest.mark.slow
def test_schemathesis(address: str) -> None:
    """No answer of 500 or above, none that breaks the description, for generated requests to each endpoint."""
    schemathesis = Path(sys.executable).with_name("schemathesis")
    if not schemathesis.exists():
        pytest.skip("schemathesis is not installed: pip install 'mmrh-retriever[dev]'")
    command = [
        str(schemathesis), "run", f"{address}/openapi.json", "--max-examples", "20", "--seed", "1", "--no-color",
        "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:]
