"""The rerank endpoints answer each kind of client in its own shape."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from mmrh_retriever import Page, PageStore, Reranker

QUERY = "How did revenue change?"
TEXTS = ["Our cats sleep most of the day.", "Revenue rose by 5 percent in 2023.", "The office has two doors."]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_documents_are_ranked_as_the_library_ranks_them(client: TestClient, bundled: Reranker, path: str) -> None:
    answer = client.post(path, json={"model": "any", "query": QUERY, "documents": TEXTS, "return_documents": True})
    assert answer.status_code == 200
    expected = bundled.with_store(PageStore()).rank(QUERY, [Page(text=text) for text in TEXTS])
    body = answer.json()
    assert [result["index"] for result in body["results"]] == [scored.position for scored in expected]
    for result, scored in zip(body["results"], expected, strict=True):
        assert result["relevance_score"] == pytest.approx(scored.score, abs=1e-6)
        assert result["document"] == {"text": TEXTS[scored.position]}
    assert (body["model"], body["usage"]) == ("reader", {"documents": 3, "questions": 1})
    assert body["meta"]["api_version"]["version"] == ("1" if path == "/v1/rerank" else "2")


def test_top_n_cuts_and_one_document_has_one_score(client: TestClient) -> None:
    cut = client.post("/v1/rerank", json={"query": QUERY, "documents": TEXTS, "top_n": 1}).json()
    assert [result["index"] for result in cut["results"]] == [1]
    assert "document" not in cut["results"][0]
    one = client.post("/v2/rerank", json={"query": QUERY, "documents": TEXTS[:1], "top_n": 7}).json()
    assert [result["index"] for result in one["results"]] == [0]


def test_teis_body_gets_teis_answer(client: TestClient) -> None:
    answer = client.post("/rerank", json={"query": QUERY, "texts": TEXTS, "return_text": True}).json()
    assert [sorted(result) for result in answer] == [["index", "score", "text"]] * 3
    assert (answer[0]["index"], answer[0]["text"]) == (1, TEXTS[1])


WRONG: list[dict[str, Any]] = [
    {"query": QUERY, "documents": []},
    {"query": "  ", "documents": TEXTS},
    {"query": QUERY, "documents": TEXTS, "top_n": 0},
    {"query": QUERY, "documents": ["a\0b"]},
    {"query": QUERY, "documents": [{"image": "file:///etc/passwd"}]},
    {"query": QUERY, "documents": [{"image": "https://example.com/page.png"}]},
    {"query": QUERY, "documents": [{"image": "/etc/passwd"}]},
    {"query": QUERY, "documents": [{"pdf": "aGVsbG8=", "page": 1}]},
    {"query": QUERY, "documents": [7]},
]


@pytest.mark.parametrize("body", WRONG, ids=range(len(WRONG)))
def test_refusals_have_the_form_of_their_endpoint(client: TestClient, body: dict[str, Any]) -> None:
    first, second = client.post("/v1/rerank", json=body), client.post("/v2/rerank", json=body)
    assert (first.status_code, second.status_code) == (422, 422)
    shared = first.json()
    assert shared["message"] == shared["detail"] == shared["error"]["message"]
    assert second.json() == {"message": shared["message"]}
    tei = client.post("/rerank", json={"query": body["query"], "texts": []})
    assert tei.status_code == 422
    assert (sorted(tei.json()), tei.json()["error_type"]) == (["error", "error_type"], "Validation")
