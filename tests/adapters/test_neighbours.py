"""Pages beside a hit: out of the candidates, else out of the hit's PDF, within the limits; none twice, no hit again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pymupdf
import pytest

from mmrh_retriever import PageError
from mmrh_retriever.adapters import AdapterSettings, PageClues
from tests.factories import page_image
from tests.ranking_stub import stub

BARS = (30, 90, 0, 60, 10)  # the whiter a page, the higher it scores: 2, 4, 0, 3, 1


@pytest.fixture
def pdf(tmp_path: Path) -> Path:
    document = pymupdf.open()
    for number, bar in enumerate(BARS):
        page = document.new_page(width=200, height=300)
        page.insert_text((20, 40), f"sheet {number}")
        page.draw_rect((0, 100, 200, 101 + bar), fill=(0, 0, 0))
    document.save(tmp_path / "five.pdf")
    return tmp_path / "five.pdf"


def given(items: list[PageClues], top_n: int | None = None, **settings: Any) -> list[tuple[int | str, int | None]]:
    """Position (or the text of a new page) and hit of all that is given."""
    found = AdapterSettings(reranker=stub(), **settings).rank_items("revenue?", items, lambda it: it, top_n=top_n)
    return [(it.position if it.page is None else str(it.page.text).strip(), it.neighbour_of) for it in found]


def test_candidates_come_along_with_their_hit_and_their_own_score(pdf: Path) -> None:
    items = [PageClues(file_path=pdf, index=index) for index in range(5)]
    assert given(items, 1) == [(2, None)]
    assert given(items, 1, neighbours="next") == [(2, None), (3, 1)]
    assert given(items, 2, neighbours="previous") == [(2, None), (1, 1), (4, None), (3, 2)]
    assert given(items, 2, neighbours="both") == [(2, None), (1, 1), (3, 1), (4, None)], "page 3 once, no page 5"
    assert given(items, None, neighbours="both") == given(items), "every page is a hit"
    settings = AdapterSettings(reranker=stub(), neighbours="next")
    hit, beside = settings.rank_items("revenue?", items, lambda it: it, top_n=1)
    plain = {it.position: it.score for it in AdapterSettings(reranker=stub()).rank_items("?", items, lambda it: it)}
    assert (hit.score, beside.score) == (plain[2], plain[3])
    assert given(items, None, neighbours="next", score_threshold=float(hit.score or 0)) == [(2, None), (3, 1)]


def test_pages_that_no_candidate_holds_come_from_the_pdf(pdf: Path) -> None:
    items = [PageClues(file_path=pdf, label="3"), PageClues(file_path=pdf, index=3, text="a chunk")]
    assert given(items, neighbours="both") == [(0, None), ("sheet 1", 1), (1, None), ("sheet 4", 2)]
    assert given([PageClues(file_path=pdf, index=4)], neighbours="next") == [(0, None)], "the PDF ends"
    assert given([PageClues(image_path=pdf, index=0)], neighbours="both") == [(0, None), ("sheet 1", 1)]
    picture = PageClues(image=page_image(1), file_path=pdf, index=1)
    assert given([picture], neighbours="next") == [(0, None), ("sheet 2", 1)]
    assert given([picture, PageClues(file_path=pdf, index=2)], 1, neighbours="previous") == [(1, None), (0, 1)]


def test_documents_of_one_page_have_one_neighbour_and_of_several_the_first_is_given(pdf: Path) -> None:
    chunks = [
        PageClues(file_path=pdf, index=index, text=text) for index, text in ((2, "a"), (3, "b"), (3, "c"), (2, "d"))
    ]
    assert given(chunks, 2, neighbours="next") == [(0, None), (1, 1), (3, None)]


def test_texts_have_neighbours_among_candidates_of_their_file() -> None:
    def text(score: float, index: int | None, file: str) -> PageClues:
        return PageClues(text=f"score={score}", file_path=file, index=index)

    items = [text(0.2, 4, "a.docx"), text(0.9, 3, "a.docx"), text(0.1, 4, "b.docx"), text(0.3, None, "a.docx")]
    assert given(items, 1, neighbours="both") == [(1, None), (0, 1)]
    remote = [PageClues(text=f"score=0.{9 - i}", file_url="https://x.org/a.pdf", index=i) for i in (0, 1)]
    with pytest.warns(UserWarning, match="not fetched"):
        assert given(remote, 1, neighbours="next") == [(0, None), (1, 1)]


def test_unreadable_pages_are_no_neighbours_and_stay_last(pdf: Path, tmp_path: Path) -> None:
    items = [PageClues(file_path=pdf, index=2), PageClues(file_path=tmp_path / "gone.pdf", index=3)]
    found = given(items, neighbours="next", on_error="last")
    assert found == [(0, None), ("sheet 3", 1), (1, None)]


def test_a_document_that_failed_is_not_given_as_a_neighbour(pdf: Path) -> None:
    settings = AdapterSettings(reranker=stub(), neighbours="next")
    items = [PageClues(file_path=pdf, index=index) for index in (2, 3)]
    ranked = settings.rank_items("revenue?", items, lambda it: it, top_n=1)
    ids = {0: ("five.pdf", 2), 1: ("five.pdf", 3)}
    assert [it.position for it in settings.add_neighbours(ranked[:1], ids, ranked)] == [0, 1]
    assert [it.position for it in settings.add_neighbours(ranked[:1], ids, ranked, {1: PageError("damaged")})] == [0]


def test_only_files_that_may_be_read(pdf: Path, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    picture = PageClues(image=page_image(1), file_path=pdf, index=1)
    assert given([picture], neighbours="next", allowed_root=tmp_path) == [(0, None), ("sheet 2", 1)]
    assert given([picture], neighbours="next", allowed_root=tmp_path / "inner") == [(0, None)]
    assert given([picture], neighbours="next", max_bytes=100) == [(0, None)]
