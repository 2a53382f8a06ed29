"""Clues to a page: metadata that loaders write, and pictures that are written as text."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest

from mmrh_retriever.errors import PageError
from mmrh_retriever.page_sources import clues_from_metadata, decode_base64, is_picture_text
from tests.factories import page_image
from tests.ranking_stub import png


def test_pictures_as_text_differ_from_paths_and_prose() -> None:
    packed = base64.b64encode(png()).decode()
    jpeg = io.BytesIO()
    page_image(1).save(jpeg, "JPEG")
    assert is_picture_text(packed)
    assert is_picture_text(base64.b64encode(jpeg.getvalue()).decode())  # begins with /9j/, as a path might
    assert is_picture_text(f"data:image/png;base64,{packed}")
    for text in ("", "/tmp/a.png", "Revenue grew.", "data:text/plain;base64,aGVsbG8=", "https://example.org/a.png"):
        assert not is_picture_text(text)


def test_base64_of_a_web_picture_is_found() -> None:
    webp = io.BytesIO()
    page_image(1).save(webp, "WEBP")
    assert is_picture_text(base64.b64encode(webp.getvalue()).decode())


def test_decode_base64_gives_the_bytes() -> None:
    assert decode_base64("aGk") == b"hi"
    assert decode_base64("data:;base64,aGk=") == b"hi"


def test_metadata_page_numbers() -> None:
    def index(metadata: dict[str, Any], **options: Any) -> int | None:
        return clues_from_metadata(metadata, **options).index

    assert index({"page": 0}) == 0
    assert index({"page": "3"}, page_base=1) == 2
    assert index({"page": 2.0}) == 2
    assert index({"file_path": "a.pdf", "source": "3"}) == 2
    assert index({"source": "3"}) is None
    assert index({"sheet": 5, "page": 1}, page_key="sheet") == 5
    assert index({"page": 1}, page_key="sheet") is None
    assert index({}) is None
    for wrong in ("iv", True, 1.5, [1]):
        with pytest.raises(PageError, match="Expected a whole number"):
            index({"page": wrong})
    with pytest.raises(PageError, match="page_base=0"):
        index({"page": 0}, page_base=1)


def test_metadata_routes() -> None:
    packed = base64.b64encode(png()).decode()
    assert clues_from_metadata({"image": packed}).image == packed
    assert clues_from_metadata({"image_base64": "anything"}).image == "anything"
    assert clues_from_metadata({"image": "scans/a.png"}).image_path == "scans/a.png"
    assert clues_from_metadata({"image": "https://example.org/a.png"}).image_url == "https://example.org/a.png"
    assert clues_from_metadata({"image_url": "https://example.org/a.png"}).image_url == "https://example.org/a.png"
    assert clues_from_metadata({"source": "a.pdf"}).file_path == "a.pdf"
    assert clues_from_metadata({"source": "https://example.org/a.pdf"}).file_path is None
    assert clues_from_metadata({"file_path": "s3://bucket/a.pdf", "source": "a.pdf"}).file_path == "a.pdf"
    assert clues_from_metadata({"page_label": 7}).label == "7"


def test_metadata_is_not_changed() -> None:
    metadata = {"image": page_image(0), "page": 3}
    before = dict(metadata)
    clues_from_metadata(metadata)
    assert metadata == before
