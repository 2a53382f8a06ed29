"""Pages of files are ranked as the library ranks them, with boxes and pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from mmrh_retriever import PageStore, Reranker, read_pdf
from tests.serving.conftest import upload

QUERY = "How did revenue change?"


def test_pages_rank_as_in_the_library(client: TestClient, bundled: Reranker, small_pdf: bytes) -> None:
    file = upload(client, small_pdf)
    answer = client.post("/v1/rank", json={"queries": [QUERY, "What are the risks?"], "files": [file["id"]]}).json()
    pages = read_pdf(small_pdf)
    rankings = bundled.with_store(PageStore()).rank_many([QUERY, "What are the risks?"], pages)
    assert [ranking["query"] for ranking in answer["rankings"]] == [QUERY, "What are the risks?"]
    for found, expected in zip(answer["rankings"], rankings, strict=True):
        assert [result["page"] for result in found["results"]] == [scored.page.number for scored in expected]
        assert [result["rank"] for result in found["results"]] == [1, 2, 3]
        for result, scored in zip(found["results"], expected, strict=True):
            for name in ("score", "attention_score", "text_score", "probability"):
                assert result[name] == pytest.approx(getattr(scored, name), abs=1e-6), name
            assert (result["file"], result["name"]) == (file["id"], "report.pdf")
    assert answer["usage"] == {"documents": 3, "questions": 2}
    assert answer["rankings"][0]["results"][0]["page"] == 1


def test_later_questions_find_the_pages_encoded(client: TestClient, small_pdf: bytes) -> None:
    file = upload(client, small_pdf)
    body = {"query": QUERY, "files": [file["id"]]}
    client.post("/v1/rank", json=body)
    store = client.app.state.service.reranker.store  # type: ignore[attr-defined]
    misses = store.misses
    client.post("/v1/rank", json=body | {"query": "Who painted the ferry?", "pages": "2-3"})
    assert store.misses == misses


def test_boxes_are_in_page_units_and_in_fractions(client: TestClient, small_pdf: bytes, small_png: bytes) -> None:
    files = [upload(client, small_pdf)["id"], upload(client, small_png, "scan.png")["id"]]
    body = {"query": QUERY, "files": [*files, *files], "regions": 2, "top_n": 4}
    results = client.post("/v1/rank", json=body).json()["rankings"][0]["results"]
    assert sorted((result["file"], result["page"]) for result in results) == sorted(
        [(files[0], 1), (files[0], 2), (files[0], 3), (files[1], 1)]
    )
    for result in results:
        width, height = result["page_size"]
        for region in result["regions"]:
            assert region["box_fraction"] == pytest.approx(
                np.array(region["box"]) / [width, height, width, height], abs=1e-9
            )
            assert region["kind"] == ("cell" if result["file"] == files[1] else "text")
    best = next(result for result in results if result["page"] == 1 and result["file"] == files[0])
    assert best["regions"][0]["text"].strip() == "Revenue rose by nine per cent in 2024."


def test_pages_are_chosen_as_people_write_them(client: TestClient, small_pdf: bytes) -> None:
    file = upload(client, small_pdf)
    body = {"query": QUERY, "files": [file["id"]]}
    results = client.post("/v1/rank", json=body | {"pages": "2-"}).json()["rankings"][0]["results"]
    assert sorted(result["page"] for result in results) == [2, 3]
    wrong = client.post("/v1/rank", json=body | {"pages": "4"})
    assert (wrong.status_code, "between 1 and 3" in wrong.json()["error"]["message"]) == (422, True)


@pytest.mark.parametrize(
    "change",
    [
        {"query": None}, {"queries": ["b"]}, {"query": None, "queries": None}, {"files": []}, {"files": ["../x"]},
        {"top_n": 0}, {"top_n": "1"}, {"regions": -1}, {"pages": "1;2"}, {"query": "a\0"}, {"unknown": 1},
    ],
)  # fmt: skip
def test_wrong_bodies_are_refused(client: TestClient, change: dict[str, object]) -> None:
    body = {"query": "a", "files": ["0" * 64]} | change
    answer = client.post("/v1/rank", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, 422)
    assert client.post("/v1/rank", json={"queries": None, "files": ["0" * 64]}).status_code == 422


def picture(client: TestClient, path: str) -> Image.Image:
    answer = client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    return Image.open(io.BytesIO(answer.content)).convert("RGB")


def test_a_page_is_a_picture_with_what_a_question_looks_at(client: TestClient, small_pdf: bytes) -> None:
    path = f"/v1/files/{upload(client, small_pdf)['id']}/pages/1.png"
    plain = picture(client, path)
    assert plain.size == read_pdf(small_pdf)[0].pixels().size
    assert max(picture(client, f"{path}?max_side=100").size) == 100
    coloured = np.asarray(picture(client, f"{path}?query=How did revenue change?"), dtype=int)
    assert np.ptp(coloured, axis=2).max() > 50  # a grey page has no colours
    assert np.ptp(np.asarray(plain, dtype=int), axis=2).max() == 0
    boxed = np.asarray(picture(client, f"{path}?query=How did revenue change?&regions=1"), dtype=int)
    assert (boxed != coloured).any()


def test_pictures_that_are_not_there(client: TestClient, small_pdf: bytes) -> None:
    file = upload(client, small_pdf)["id"]
    assert client.get(f"/v1/files/{file}/pages/4.png").status_code == 404
    assert client.get(f"/v1/files/{'0' * 64}/pages/1.png").status_code == 404
    for wrong in ("0.png", "1.png?query=", "1.png?query=%00", "1.png?max_side=9999999", f"{'9' * 5000}.png"):
        assert client.get(f"/v1/files/{file}/pages/{wrong}").status_code == 422, wrong
