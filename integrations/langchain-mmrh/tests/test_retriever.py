"""The retriever: calls, callbacks, async and threads, and PDF files of its own."""

from __future__ import annotations

import asyncio
import copy
import io
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from mmrh_retriever import ContextOverflowError, PageError, read_pdf
from tests.ranking_stub import StubReranker, real

from langchain_mmrh import MMRHRerank, MMRHRetriever
from tests.fixed_retriever import QUESTION, REPORT, doc, over


class Noted(BaseCallbackHandler):
    """Notes the starts, ends and errors of retrievers, with their parents."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any, Any]] = []

    def on_retriever_start(self, *_: Any, run_id: Any, parent_run_id: Any = None, **__: Any) -> None:
        self.events.append(("start", run_id, parent_run_id))

    def on_retriever_end(self, *_: Any, run_id: Any, parent_run_id: Any = None, **__: Any) -> None:
        self.events.append(("end", run_id, parent_run_id))

    def on_retriever_error(self, *_: Any, run_id: Any, parent_run_id: Any = None, **__: Any) -> None:
        self.events.append(("error", run_id, parent_run_id))


def test_k_per_call_and_extra_arguments(reranker: StubReranker) -> None:
    retriever = over(reranker, [doc(0.1), doc(0.2), doc(0.3)], k=2)
    assert len(retriever.invoke(QUESTION)) == 2
    assert len(retriever.invoke(QUESTION, k=3)) == 3
    assert len(retriever.invoke(QUESTION, score_threshold=0.25)) == 1
    assert len(asyncio.run(retriever.ainvoke(QUESTION, k=1))) == 1
    retriever.invoke(QUESTION, k=1, filter={"year": 2023})
    assert retriever.base_retriever.asked == [{}, {}, {}, {"async": True}, {"filter": {"year": 2023}}]
    with pytest.raises(ValueError, match="k is a whole number"):
        retriever.invoke(QUESTION, k=0)


# Callbacks, async, threads


@pytest.mark.parametrize("documents", [[], [doc(0.5)]])
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_start_and_end_are_always_reported_and_the_base_is_a_child(
    reranker: StubReranker, documents: list[Document], mode: str
) -> None:
    noted = Noted()
    retriever = over(reranker, documents)
    if mode == "sync":
        retriever.invoke(QUESTION, config={"callbacks": [noted]})
    else:
        asyncio.run(retriever.ainvoke(QUESTION, config={"callbacks": [noted]}))
    own = noted.events[0][1]
    assert [name for name, *_ in noted.events] == ["start", "start", "end", "end"]
    assert noted.events[1][2] == own
    assert noted.events[3][1] == own


def test_a_failure_is_reported(reranker: StubReranker) -> None:
    noted = Noted()
    with pytest.raises(PageError):
        over(reranker, [Document("", metadata={"image_path": "missing.png"})]).invoke(
            QUESTION, config={"callbacks": [noted]}
        )
    assert [name for name, *_ in noted.events] == ["start", "start", "end", "error"]


async def wait_beside(work: Any) -> tuple[Any, int]:
    """The result of something awaited, and how often the loop turned meanwhile."""
    turns = 0
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.sleep(0.005)
        turns += 1
    return task.result(), turns


def test_async_leaves_the_loop_free(reranker: StubReranker) -> None:
    documents = [doc(0.25), doc(0.5)]
    rank = reranker.rank
    reranker.rank = lambda *args, **more: (time.sleep(0.2), rank(*args, **more))[1]  # type: ignore[method-assign]
    compressor = MMRHRerank(reranker=reranker)
    found, turns = asyncio.run(wait_beside(compressor.acompress_documents(documents, QUESTION, top_n=1)))
    assert turns > 5
    assert found == compressor.compress_documents(documents, QUESTION, top_n=1)
    found, turns = asyncio.run(wait_beside(over(reranker, documents).ainvoke(QUESTION)))
    assert turns > 5
    assert found == over(reranker, documents).invoke(QUESTION)


@pytest.mark.parametrize("origin", ["documents", "files"])
def test_eight_threads_give_the_scores_of_one(origin: str) -> None:
    pages = [Document("", metadata={"source": str(REPORT), "page": page}) for page in range(3)]

    def made() -> MMRHRetriever:
        if origin == "documents":
            return over(real(), pages, k=20)
        return MMRHRetriever(files=[REPORT], reranker=real(), k=20)

    def ask(retriever: MMRHRetriever, number: int) -> list[Any]:
        found = retriever.invoke(f"{QUESTION} {number}")
        return [(it.metadata["page"], it.metadata["relevance_score"]) for it in found]

    alone, together = made(), made()
    expected = [ask(alone, number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda number: ask(together, number), range(8))) == expected


# Files


def test_files_are_ranked_like_their_pages(pdf: Path) -> None:
    scorer = real()
    expected = [(it.page.index, it.score) for it in scorer.rank(QUESTION, read_pdf(pdf))]
    found = MMRHRetriever(files=pdf, reranker=scorer).invoke(QUESTION)
    assert [it.metadata["page"] for it in found] == [page for page, _ in expected]
    assert [it.metadata["relevance_score"] for it in found] == pytest.approx([score for _, score in expected], abs=1e-6)
    top = found[0]
    assert top.metadata["source"] == top.metadata["file_path"] == str(pdf)
    assert top.metadata["total_pages"] == 3
    assert top.id == f"{pdf}#{top.metadata['page']}"
    assert {it.page_content for it in found} == {"harbour", "lifeboat", ""}


def test_what_a_file_gives_can_be_reranked_again(pdf: Path) -> None:
    scorer = real()
    found = MMRHRetriever(files=pdf, reranker=scorer).invoke(QUESTION)
    again = MMRHRerank(reranker=scorer).compress_documents(sorted(found, key=lambda it: it.metadata["page"]), QUESTION)
    assert [it.id for it in again] == [it.id for it in found]


def test_pages_run_through_the_model_once(pdf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = real()
    encodes = []
    encode = scorer.encode
    monkeypatch.setattr(scorer, "encode", lambda *args, **more: (encodes.append(1), encode(*args, **more))[1])
    retriever = MMRHRetriever(files=[pdf], reranker=scorer)
    first = retriever.invoke(QUESTION)
    retriever.invoke("Something else?")
    assert copy.deepcopy(retriever).invoke(QUESTION) == first
    assert len(encodes) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("mode", ["sync", "async", "question"])
def test_warming_up_runs_the_pages_with_a_bar_on_a_terminal(
    pdf: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    scorer = real()
    retriever = MMRHRetriever(files=[pdf], reranker=scorer)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    if mode == "sync":
        retriever.warm_up()
    elif mode == "async":
        asyncio.run(retriever.awarm_up())
    else:
        retriever.invoke(QUESTION)
    assert "pages" in terminal.getvalue()
    assert "/3" in terminal.getvalue()
    monkeypatch.setattr(scorer, "encode", lambda *_, **__: pytest.fail("encoded again"))
    assert len(retriever.invoke(QUESTION)) == 3


def test_no_bar_where_stderr_is_no_terminal(pdf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MMRHRetriever(files=[pdf], reranker=real()).warm_up()
    assert capsys.readouterr().err == ""


def test_warming_up_over_a_retriever_asks_nothing(reranker: StubReranker) -> None:
    retriever = over(reranker, [doc(0.1)])
    retriever.warm_up()
    assert retriever.base_retriever.asked == []


def test_words_shorten_the_list_and_pages_without_words_stay(pdf: Path, reranker: StubReranker) -> None:
    pytest.importorskip("bm25s")
    retriever = MMRHRetriever(files=[pdf], first_stage="bm25", candidates=1, reranker=reranker)
    found = retriever.invoke("Where is the lifeboat?")
    assert [it.metadata["page"] for it in found] == [1, 2]


@pytest.mark.parametrize("stage", ["all", "bm25"])
def test_files_that_cannot_be_read(pdf: Path, tmp_path: Path, stage: Any) -> None:
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"%PDF-1.7 nothing")
    settings: dict[str, Any] = {"files": [broken, pdf], "first_stage": stage, "reranker": real(), "k": 9}
    with pytest.raises(PageError, match=r"broken\.pdf"):
        MMRHRetriever(**settings).invoke(QUESTION)
    last = MMRHRetriever(on_error="last", **settings).invoke(QUESTION)
    assert len(last) == 4
    assert (last[3].metadata["source"], last[3].metadata["relevance_score"]) == (str(broken), None)
    assert len(MMRHRetriever(on_error="drop", **settings).invoke(QUESTION)) == 3
    assert MMRHRetriever(**(settings | {"files": broken, "on_error": "drop"})).invoke(QUESTION) == []


def test_pages_too_long_for_the_model(pdf: Path) -> None:
    scorer = real(token_budget=534)
    with pytest.raises(ContextOverflowError):
        MMRHRetriever(files=[pdf], reranker=scorer).invoke(QUESTION)
    assert MMRHRetriever(files=[pdf], reranker=scorer, on_error="drop").invoke(QUESTION) == []


@pytest.mark.parametrize("stage", ["all", "bm25"])
def test_real_regions_of_files(pdf: Path, stage: Any) -> None:
    retriever = MMRHRetriever(files=[pdf], reranker=real(), with_regions=True, regions_per_page=1, first_stage=stage)
    found = retriever.invoke(QUESTION, k=2)
    for it in found:
        (region,) = it.metadata["mmrh_regions"]
        x0, y0, x1, y1 = region["box"]
        assert 0 <= x0 < x1 <= 200
        assert 0 <= y0 < y1 <= 300


def test_files_take_no_other_arguments(pdf: Path, reranker: StubReranker) -> None:
    with pytest.raises(TypeError, match="filter"):
        MMRHRetriever(files=[pdf], reranker=reranker).invoke(QUESTION, filter={})
