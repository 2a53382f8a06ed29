"""Files are uploaded once, described, and deleted; hostile ones hurt nobody."""

from __future__ import annotations

import hashlib

import pytest
from fastapi.testclient import TestClient

from mmrh_retriever import Reranker
from tests.pdf.made_pdfs import edited, make_pdf
from tests.pdf.test_isolated import stalling
from tests.serving.conftest import client_of, small_pages, upload


def test_a_file_is_named_by_its_content_and_described(client: TestClient, small_pdf: bytes) -> None:
    found = upload(client, small_pdf, "../secret/annual report.pdf")
    assert found["id"] == hashlib.sha256(small_pdf).hexdigest()
    assert (found["name"], found["kind"], found["bytes"]) == ("annual report.pdf", "pdf", len(small_pdf))
    assert found["pages"] == [{"page": number, "width": 220.0, "height": 160.0} for number in (1, 2, 3)]
    assert client.get(f"/v1/files/{found['id']}").json() == found
    listed = client.get("/v1/files").json()["data"]
    assert [file["page_count"] for file in listed if file["id"] == found["id"]] == [3]


def test_an_image_is_a_file_of_one_page_in_pixels(client: TestClient, small_png: bytes) -> None:
    found = upload(client, small_png, "scan.png")
    assert (found["kind"], found["pages"]) == ("image", [{"page": 1, "width": 96.0, "height": 64.0}])


def test_a_deleted_file_is_gone(client: TestClient) -> None:
    found = upload(client, small_pages("To be deleted."))
    assert client.delete(f"/v1/files/{found['id']}").json() == {"id": found["id"], "object": "file", "deleted": True}
    assert client.delete(f"/v1/files/{found['id']}").status_code == 404
    assert client.get(f"/v1/files/{found['id']}").status_code == 404
    asked = client.post("/v1/rank", json={"query": "Where?", "files": [found["id"]]})
    assert (asked.status_code, asked.json()["error"]["type"]) == (404, "not_found")


@pytest.mark.parametrize("content", [b"", b"%PDF-1.7 nothing", b"plain text", b"\x89PNG\r\n\x1a\n cut"])
def test_what_can_not_be_read_is_refused(client: TestClient, content: bytes) -> None:
    answer = client.post("/v1/files", files={"file": ("x.pdf", content)})
    assert (answer.status_code, answer.json()["error"]["type"]) == (422, "validation")
    assert "BytesIO" not in answer.text


def test_bodies_that_are_no_upload_are_refused(client: TestClient) -> None:
    assert client.post("/v1/files", json={"file": "x"}).status_code == 422
    assert client.post("/v1/files", data={"file": "x"}).status_code == 422
    broken = client.post("/v1/files", content=b"--x\r\n", headers={"content-type": "multipart/form-data"})
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, 400)


def test_a_hostile_pdf_is_given_up_and_the_server_goes_on(bundled: Reranker) -> None:
    hostile = edited(make_pdf(["one", "two", "three"]), stalling)
    with client_of(bundled, pdf_seconds=1.0, max_pages=3) as client:
        answer = client.post("/v1/files", files={"file": ("hostile.pdf", hostile)})
        assert answer.status_code == 422
        assert "takes more than the 1 s" in answer.json()["error"]["message"]
        assert client.get("/v1/files").json()["data"] == []
        long = client.post("/v1/files", files={"file": ("long.pdf", small_pages(*["page"] * 4))})
        assert (long.status_code, long.json()["error"]["message"]) == (
            413,
            "There are 4 pages; 3 are taken. Give fewer.",
        )
        assert upload(client, small_pages(*["page"] * 3))["page_count"] == 3


def test_pixels_are_counted_before_decoding(bundled: Reranker, small_png: bytes) -> None:
    from mmrh_retriever.adapters.settings import DocumentSettings

    with client_of(bundled, DocumentSettings(max_image_pixels=96 * 64 - 1)) as client:
        truncated = small_png[:60]  # the header is whole: decoding it would fail in another way
        answer = client.post("/v1/files", files={"file": ("scan.png", truncated)})
        assert answer.status_code == 422
        assert "has 96 x 64 pixels" in answer.json()["error"]["message"]
