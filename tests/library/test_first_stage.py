"""Which pages are picked by words, by meaning and by both; vectors kept and made again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mmrh_retriever import Page, SettingsError
from mmrh_retriever.library.first_stage import TextSearch
from mmrh_retriever.model.text_embeddings import EmbeddingScorer
from tests.library.made_files import found, library, make

TEXTS = ["the harbour", "ships at sea", "a lifeboat", "", "boats"]
PAGES = [Page(text=text) if text else Page(image=b"P5 8 8 255 " + bytes(64)) for text in TEXTS]


class Meanings(EmbeddingScorer):
    """Texts about boats point one way, about anything else another; a chunk is a word."""

    fingerprint = "0123"

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def vectors(self, texts: Sequence[str]) -> list[npt.NDArray[np.float32]]:
        self.embedded += texts
        return [self.embed(text.split()).astype(np.float32) for text in texts]

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        boats = ("ship", "boat", "vessel")
        rows = [[1.0, 0.0] if any(boat in text for boat in boats) else [0.0, 1.0] for text in texts]
        return np.array(rows).reshape(len(texts), 2)


def search(kind: Any) -> TextSearch:
    embedder = None if kind == "bm25" else Meanings()
    vectors = [] if embedder is None else embedder.vectors(TEXTS)
    return TextSearch(PAGES, kind, vectors=vectors, embedder=embedder)


def test_words_meaning_and_both() -> None:
    assert search("bm25").choose("Which lifeboat?", 1, 1) == [2, 3]
    assert search("embedding").choose("vessels", 3, 1) == [1, 2, 3, 4]
    assert search("hybrid").choose("vessels harbour", 4, 1) == [0, 1, 2, 3, 4]
    assert search("hybrid").choose("vessel or lifeboat", 1, 1) == [2, 3]  # by both
    assert search("bm25").choose("Which lifeboat?", 99, 1) == [0, 1, 2, 3, 4]
    for kind in ("bm25", "embedding", "hybrid"):
        with pytest.raises(SettingsError, match=f"first_stage='{kind}'"):
            search(kind).choose("lifeboat", 1, 0)


def test_reciprocal_ranks_by_hand() -> None:
    both = search("hybrid")
    scores = both._scores("lifeboat boats", 2)
    # by words "a lifeboat" and "boats" share rank 1, by meaning these and "ships at sea"
    expected = [1 / 63 + 1 / 64, 1 / 63 + 1 / 61, 2 / 61, 2 / 61]
    assert scores == pytest.approx(expected)


def test_a_library_by_meaning_embeds_each_content_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path / "in" / "a.pdf", "harbour", "two ships")
    make(tmp_path / "in" / "b.pdf", "revenue")
    options: dict[str, Any] = {"first_stage": "embedding", "candidates": 1, "folder": tmp_path / "kept"}
    first, again, third = Meanings(), Meanings(), Meanings()
    asked = library(tmp_path / "in", embedder=first, **options)
    assert [one[:2] for one in found(asked, "vessels")] == [("a.pdf", 2)]
    make(tmp_path / "in" / "c.pdf", "nothing")
    found(asked, "vessels")
    assert first.embedded == ["harbour", "two ships", "revenue", "nothing"]
    reopened = library(tmp_path / "in", embedder=again, **options)
    assert [one[:2] for one in found(reopened, "vessels")] == [("a.pdf", 2)]
    assert again.embedded == []

    for path in (tmp_path / "kept" / "documents").glob("*-0123.mmrh-document"):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with caplog.at_level(logging.WARNING):
        found(library(tmp_path / "in", embedder=third, **options), "vessels")
    assert sorted(third.embedded) == sorted(first.embedded)
    assert "damaged" in caplog.text


def test_a_library_without_text_has_nothing_to_embed(tmp_path: Path) -> None:
    make(tmp_path / "a.pdf", "")
    for kind in ("bm25", "embedding", "hybrid"):
        assert len(found(library(tmp_path / "a.pdf", first_stage=kind, embedder=Meanings()))) == 1
