"""Small PDFs of known words, and libraries of them on a tiny random model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pymupdf

from mmrh_retriever import Library, Reranker
from tests.ranking_stub import real

QUESTION = "Where is the lifeboat?"


def make(path: Path, *words: str) -> Path:
    """A PDF with a page per word; none is on the page of an empty one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = pymupdf.open()
    for number, word in enumerate(words):
        page = document.new_page(width=200, height=300)
        page.insert_text((20, 40), word)
        page.draw_rect((0, 100, 200, 110 + 40 * number), fill=(0, 0, 0))
    document.save(path)
    return path


def library(files: Any, *, reranker: Reranker | None = None, **options: Any) -> Library:
    return Library(files, reranker=real(independent=True) if reranker is None else reranker, **options)


def found(of: Library, question: str = QUESTION) -> list[tuple[str | None, int, float]]:
    return [(it.page.doc_id, it.page.number, it.score) for it in of.rank(question)]
