"""Documents in every shape: what they are ranked by, and what is refused before it is decoded."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from fastapi.testclient import TestClient

from mmrh_retriever import Page, PageStore, Reranker, read_pdf
from mmrh_retriever.adapters.settings import DocumentSettings
from mmrh_retriever.serving.documents import cut_text
from tests.serving.conftest import TEXTS, client_of, wait_until_ready

QUERY = "How did revenue change?"


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def test_every_shape_is_ranked_as_its_page(
    client: TestClient, bundled: Reranker, small_pdf: bytes, small_png: bytes
) -> None:
    uri = "data:image/png;base64," + base64_of(small_png)
    documents: list[Any] = [
        TEXTS[0],
        {"text": TEXTS[1], "title": "of no effect"},
        {"image": base64_of(small_png)},
        {"image": uri, "text": TEXTS[2]},
        {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"content": [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "c"}]},
        {"pdf": base64_of(small_pdf), "page": 2},
    ]
    pages = [
        Page(text=TEXTS[0]), Page(text=TEXTS[1]), Page(image=small_png), Page(image=small_png, text=TEXTS[2]),
        Page(text="a\nb"), Page(image=small_png, text="c"), *read_pdf(small_pdf, pages=[1]),
    ]  # fmt: skip
    answer = client.post(
        "/v1/rerank", json={"query": QUERY, "documents": documents, "return_documents": True, "regions": 1}
    )
    assert answer.status_code == 200, answer.text
    expected = bundled.with_store(PageStore()).rank(QUERY, pages)
    results = answer.json()["results"]
    assert [result["index"] for result in results] == [scored.position for scored in expected]
    for result, scored in zip(results, expected, strict=True):
        assert result["relevance_score"] == pytest.approx(scored.score, abs=1e-6)
        assert result["document"]["text"] == (pages[scored.position].text or "")
    kinds = {result["index"]: [region["kind"] for region in result["regions"]] for result in results}
    assert kinds == {0: [], 1: [], 2: ["cell"], 3: ["cell"], 4: [], 5: ["cell"], 6: ["text"]}


def test_texts_are_cut_to_tokens(client: TestClient) -> None:
    long = "Revenue rose. " * 2000
    body = {"query": QUERY, "documents": [long, "Nothing."], "return_documents": True}
    assert client.post("/v1/rerank", json=body).status_code == 422  # too long for the model
    cut = client.post("/v1/rerank", json=body | {"max_tokens_per_doc": 5}).json()["results"]
    texts = {result["index"]: result["document"]["text"] for result in cut}
    assert long.startswith(texts[0])
    assert 10 < len(texts[0]) < 40
    assert texts[1] == "Nothing."
    assert client.post("/rerank", json={"query": QUERY, "texts": [long]}).status_code == 422


REFUSED: list[tuple[Any, str]] = [
    ({"image": "file:///etc/passwd"}, "names an address"),
    ({"image": "ftp://example.com/x.png"}, "names an address"),
    ({"image": "http://example.com/x.png"}, "names an address"),
    ({"content": [{"type": "image_url", "image_url": {"url": "http://example.com/x.png"}}]}, "names an address"),
    ({"pdf": "http://example.com/x.pdf"}, "names an address"),
    ({"image": "/etc/passwd"}, "documents[0]"),
    ({"image": "data:text/plain,hello"}, "not base64"),
    ({"image": base64_of(b"no image")}, "not an image"),
    ({"pdf": base64_of(b"%PDF-1.7 no pdf")}, "can't be read as a PDF"),
    ({"content": []}, "at least 1 item"),
    ({"content": [{"type": "video", "video": "x"}]}, "type"),
    ({"page": 1}, "text"),
    ({}, "text"),
    (None, "valid"),
]


@pytest.mark.parametrize(("document", "said"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_document_is_refused(client: TestClient, document: Any, said: str) -> None:
    answer = client.post("/v2/rerank", json={"query": QUERY, "documents": [document]})
    assert answer.status_code == 422
    assert said in answer.json()["message"]


def test_a_document_has_one_image(client: TestClient, small_png: bytes) -> None:
    part = {"type": "image_url", "image_url": {"url": base64_of(small_png)}}
    answer = client.post("/v1/rerank", json={"query": QUERY, "documents": [{"content": [part, part]}]})
    assert (answer.status_code, "documents[0] has 2 images" in answer.text) == (422, True)


def test_a_page_that_a_pdf_does_not_have(client: TestClient, small_pdf: bytes) -> None:
    for page in (0, 4, 2**31, 10**30, "1"):
        document = {"pdf": base64_of(small_pdf), "page": page}
        assert client.post("/v1/rerank", json={"query": QUERY, "documents": [document]}).status_code == 422, page


def test_pixels_are_counted_before_decoding(bundled: Reranker, small_png: bytes) -> None:
    with client_of(bundled, DocumentSettings(max_image_pixels=96 * 64 - 1)) as client:
        wait_until_ready(client)
        document = {"image": base64_of(small_png[:60])}  # its header is whole; decoding it would fail in another way
        answer = client.post("/v1/rerank", json={"query": QUERY, "documents": [document]})
        assert (answer.status_code, "has 96 x 64 pixels" in answer.text) == (422, True)


def test_addresses_are_fetched_only_where_allowed_and_from_public_hosts(bundled: Reranker) -> None:
    with client_of(bundled, DocumentSettings(allow_urls=True)) as client:
        wait_until_ready(client)
        for address in ("http://127.0.0.1:1/x.png", "http://169.254.169.254/latest", "http://[::1]/x.png"):
            answer = client.post("/v2/rerank", json={"query": QUERY, "documents": [{"image": address}]})
            assert (answer.status_code, "not a public address" in answer.json()["message"]) == (422, True)
        answer = client.post("/v2/rerank", json={"query": QUERY, "documents": [{"image": "file:///etc/passwd"}]})
        assert (answer.status_code, "names an address" in answer.json()["message"]) == (422, True)


class Watched:
    """A tokenizer that notes how long the texts are that it gets."""

    def __init__(self, tokenizer: Any) -> None:
        self.backend_tokenizer = self
        self.tokenizer = tokenizer.backend_tokenizer
        self.lengths: list[int] = []

    def encode(self, text: str, **options: Any) -> Any:
        self.lengths.append(len(text))
        return self.tokenizer.encode(text, **options)


@pytest.mark.parametrize(
    "text",
    ["word and more " * 5000, "a" * 30_000, "日本語の文章です。" * 4000, " " * 40_000 + "word " * 200, "short", "x. "],
)
def test_a_long_text_is_cut_as_if_it_was_read_whole(bundled: Reranker, text: str) -> None:
    tokenizer = bundled.prompter.tokenizer
    offsets = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).offsets
    for tokens in (1, 2, 7, 64):
        expected = text if len(offsets) <= tokens else text[: offsets[tokens - 1][1]]
        assert cut_text(Page(text=text), tokenizer, tokens).text == (expected if expected.strip() else text)


def test_a_long_text_is_not_read_beyond_its_cut(bundled: Reranker) -> None:
    tokenizer = Watched(bundled.prompter.tokenizer)
    kept = cut_text(Page(text="word and more " * 100_000), tokenizer, 10).text
    assert kept is not None
    assert len(kept) < 100
    assert max(tokenizer.lengths) < 1000
