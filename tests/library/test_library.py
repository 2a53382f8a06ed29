"""A library ranks as the reranker does, with any first stage; threads, copies and pickles of it."""

from __future__ import annotations

import asyncio
import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mmrh_retriever import Library, PageError, QuestionError, SettingsError, read_pdf
from tests.factories import page_image
from tests.library.made_files import QUESTION, found, library, make
from tests.ranking_stub import real


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``a.pdf`` of two pages, ``in/b.pdf`` of two, ``in/c.png``, and what is no page."""
    make(tmp_path / "files" / "a.pdf", "harbour", "lifeboat")
    make(tmp_path / "files" / "in" / "b.pdf", "revenue", "lifeboat station")
    page_image(1).save(tmp_path / "files" / "in" / "c.png")
    (tmp_path / "files" / "notes.txt").write_text("no page")
    return tmp_path / "files"


def test_all_pages_are_ranked_as_by_the_reranker(folder: Path) -> None:
    scorer = real()
    pages = [*read_pdf(folder / "a.pdf"), *read_pdf(folder / "in" / "b.pdf")]
    expected = [(it.page.doc_id, it.page.number, it.score) for it in scorer.rank(QUESTION, pages)]
    files = [folder / "a.pdf", folder / "in" / "b.pdf", folder / "a.pdf"]
    asked = library(files, reranker=scorer)
    ranked = found(asked)
    assert [one[:2] for one in ranked] == [one[:2] for one in expected]
    assert [one[2] for one in ranked] == pytest.approx([one[2] for one in expected], abs=1e-6)
    (top,) = asked.rank(QUESTION, top_n=1, with_tokens=True)
    assert asked.pages[top.position] is top.page
    assert top.page.metadata["total_pages"] == 2
    assert top.token_scores is not None
    assert asyncio.run(asked.arank(QUESTION, top_n=1))[0].page is top.page


@pytest.mark.parametrize("stage", ["bm25", "all"])
def test_pages_from_the_store_are_scored_as_drawn_ones(folder: Path, tmp_path: Path, stage: Any) -> None:
    scorer = real(independent=True)
    plain = {(page.doc_id, page.number): page for name in ("a.pdf", "in/b.pdf") for page in read_pdf(folder / name)}
    options = {"first_stage": stage, "folder": tmp_path / "kept", "candidates": 2}
    first = found(library([folder / "a.pdf", folder / "in" / "b.pdf"], reranker=scorer, **options))
    again = library([folder / "a.pdf", folder / "in" / "b.pdf"], reranker=scorer, **options)
    assert found(again) == first
    assert again.reranker.store is not None
    assert (again.reranker.store.hits, again.reranker.store.misses) == (len(first), 0)
    in_order = [plain[one[0], one[1]] for one in sorted(first)]  # as the files stand
    numbered = scorer.with_store(again.reranker.store)  # labels hold the pages' own numbers then, as in a library
    expected = {(it.page.doc_id, it.page.number): it.score for it in numbered.rank(QUESTION, in_order)}
    assert {one[:2]: one[2] for one in first} == pytest.approx(expected, abs=1e-6)


def test_a_first_stage_picks_by_words_and_adds_pages_without_text(folder: Path) -> None:
    asked = library(folder, first_stage="bm25", candidates=1)
    assert {one[:2] for one in found(asked)} == {("a.pdf", 2), ("c.png", 1)}
    assert {one[:2] for one in found(asked, "How did revenue change?")} == {("b.pdf", 1), ("c.png", 1)}
    with pytest.warns(UserWarning, match="No page has a word"):
        assert {one[:2] for one in found(asked, "Quokka?")} == {("a.pdf", 1), ("c.png", 1)}


def test_more_pages_without_text_than_allowed_are_refused_not_lost(folder: Path) -> None:
    page_image(2).save(folder / "d.png")
    with pytest.raises(SettingsError, match=r'2 of 6 pages have no text.*first_stage="all", or raise textless'):
        library(folder, first_stage="bm25", textless=1).rank(QUESTION)
    assert len(found(library(folder, first_stage="bm25", textless=2, candidates=1))) == 3
    assert len(found(library(folder, textless=0))) == 6  # all are looked at


def test_files_of_one_name_are_called_by_their_paths(folder: Path) -> None:
    make(folder / "in" / "a.pdf", "anchor")
    assert {page.doc_id for page in library(folder).pages} == {
        str(folder / "a.pdf"), str(folder / "in" / "a.pdf"), "b.pdf", "c.png",
    }  # fmt: skip


def test_encoding_before_leaves_only_questions_to_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in ("bm25", "all"):
        asked = library(folder, first_stage=stage)
        asked.encode()
        monkeypatch.setattr(type(asked.reranker.vision), "of", lambda *_: pytest.fail("a page runs again"))
        assert len(found(asked)) == 5
        monkeypatch.undo()
    with pytest.raises(SettingsError, match="independent=True"):
        library(folder, first_stage="bm25", reranker=real()).encode()


def test_regions_of_pages(folder: Path) -> None:
    answer = library(folder, layout=True, first_stage="bm25", candidates=1).ask(QUESTION)
    regions = answer.rank_regions([it.page for it in answer.ranking])
    assert {region.page.doc_id for region in regions} == {"a.pdf", "c.png"}
    assert {region.kind for region in regions if region.page.doc_id == "c.png"} == {"cell"}


def test_threads_get_the_answers_of_one(folder: Path, tmp_path: Path) -> None:
    questions = [QUESTION, "How did revenue change?", "Where is the harbour?", "station?"] * 2
    scorer = real(independent=True)
    alone = library(folder, reranker=scorer, first_stage="bm25", candidates=2)
    expected = [found(alone, question) for question in questions]
    together = library(folder, reranker=scorer, first_stage="bm25", candidates=2, folder=tmp_path / "kept")
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda question: found(together, question), questions)) == expected


def test_copies_are_the_library_and_pickles_hold_its_arguments(folder: Path, tmp_path: Path) -> None:
    made = Library(folder, first_stage="bm25", folder=tmp_path / "kept", candidates=3)
    assert copy.deepcopy([made])[0] is made
    packed = pickle.dumps(made)
    assert len(packed) < 1000
    other = pickle.loads(packed)  # noqa: S301
    assert (other.files, other.folder, other.settings) == (made.files, made.folder, made.settings)
    assert [page.text for page in other.pages] == [page.text for page in made.pages]
    with pytest.raises(SettingsError, match="can't be pickled"):
        pickle.dumps(library(folder))


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="no setting 'top_k'"):
        library(folder, top_k=3)
    for wrong in ({"first_stage": "dense"}, {"candidates": 0}, {"textless": -1}, {"memory": -1}, {"on_error": "last"}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            library(folder, **wrong)
    with pytest.raises(SettingsError, match="got none"):
        library([])
    (tmp_path / "empty").mkdir()
    with pytest.raises(PageError, match="no PDF and no image"):
        library(tmp_path / "empty").rank(QUESTION)
    with pytest.raises(QuestionError):
        library(folder).rank(" ")
    with pytest.raises(SettingsError, match="top_n"):
        library(folder).rank(QUESTION, top_n=0)
