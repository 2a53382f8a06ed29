"""The retriever over files: nodes of pages, any first stage, files that can't be read, inside a query engine."""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path
from typing import Any

import pymupdf
import pytest
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import MetadataMode
from mmrh_retriever import PageError, SettingsError, read_pdf
from tests.ranking_stub import real

from llama_index.postprocessor.mmrh_rerank import MMRHRerank, MMRHRetriever
from tests import factories
from tests.nodes import QUESTION


def found_by(retriever: MMRHRetriever, question: str = QUESTION) -> list[tuple[int, float | None]]:
    return [(it.node.metadata.get("page"), it.score) for it in retriever.retrieve(question)]


def test_files_are_ranked_like_their_pages(pdf: Path) -> None:
    scorer = real()
    expected = [(it.page.number, it.score) for it in scorer.rank(QUESTION, read_pdf(pdf))]
    retriever = MMRHRetriever(pdf, reranker=scorer)
    found = found_by(retriever)
    assert [page for page, _ in found] == [page for page, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-6)
    node = retriever.retrieve(QUESTION)[0].node
    number = node.metadata["page"]
    assert node.metadata == {
        "file_path": str(pdf), "page": number, "page_label": f"A-{number}", "total_pages": 3,
    }  # fmt: skip
    assert node.get_content(metadata_mode=MetadataMode.NONE) == f"sheet {number - 1}"
    assert node.node_id == f"{pdf}#{number - 1}"
    assert found_by(copy.deepcopy(retriever)) == found


def test_what_it_gives_can_be_reranked(pdf: Path) -> None:
    scorer = real()
    found = MMRHRetriever(pdf, reranker=scorer).retrieve(QUESTION)
    in_order = sorted(found, key=lambda it: it.node.metadata["page"])
    again = MMRHRerank(reranker=scorer).postprocess_nodes(in_order, query_str=QUESTION)
    assert [it.node_id for it in again] == [it.node_id for it in found]


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A folder with a PDF of a word per page."""
    document = pymupdf.open()
    for word in ("harbour", "lifeboat", "revenue"):
        document.new_page(width=200, height=300).insert_text((20, 40), word)
    (tmp_path / "in").mkdir()
    document.save(tmp_path / "in" / "words.pdf")
    return tmp_path / "in"


def test_a_first_stage_picks_pages_by_their_text(words: Path) -> None:
    retriever = MMRHRetriever(files=[words], first_stage="bm25", candidates=1, reranker=real())
    assert [page for page, _ in found_by(retriever, "Where is the lifeboat?")] == [2]
    assert len(retriever.library.pages) == 3


def test_pages_without_text_are_candidates_or_refused(words: Path) -> None:
    factories.page_image(1).save(words / "scan.png")
    settings: dict[str, Any] = {"first_stage": "bm25", "candidates": 1, "reranker": real()}
    found = MMRHRetriever(words, **settings).retrieve("Where is the lifeboat?")
    assert {Path(it.node.metadata["file_path"]).name for it in found} == {"words.pdf", "scan.png"}
    with pytest.raises(SettingsError, match="textless=0"):
        MMRHRetriever(words, textless=0, **settings).retrieve("Where is the lifeboat?")


def test_files_that_cannot_be_read(pdf: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"%PDF-1.7 nothing")
    settings: dict[str, Any] = {"files": [broken, pdf], "reranker": real(), "similarity_top_k": 9}
    with pytest.raises(PageError, match=r"broken\.pdf"):
        MMRHRetriever(**settings).retrieve(QUESTION)
    last = MMRHRetriever(on_error="last", **settings).retrieve(QUESTION)
    assert [it.score is None for it in last] == [False, False, False, True]
    assert last[3].node.metadata["file_path"] == str(broken)
    assert "broken.pdf" in last[3].node.metadata["mmrh_error"]
    assert len(MMRHRetriever(on_error="drop", **settings).retrieve(QUESTION)) == 3


def test_changed_files_are_read_again(pdf: Path) -> None:
    retriever = MMRHRetriever(pdf, reranker=real())
    assert len(retriever.retrieve(QUESTION)) == 3
    document = pymupdf.open()
    document.new_page(width=200, height=300).insert_text((20, 40), "one sheet")
    document.save(pdf)
    assert [page for page, _ in found_by(retriever)] == [1]


def test_regions_on_request(pdf: Path) -> None:
    retriever = MMRHRetriever(pdf, reranker=real(), with_regions=True, regions_per_page=1, similarity_top_k=2)
    for it in retriever.retrieve(QUESTION):
        (region,) = it.node.metadata["mmrh_regions"]
        assert region["page_size"] == [200.0, 300.0]
        assert "mmrh_regions" not in it.node.get_content(metadata_mode=MetadataMode.LLM)


def test_neighbours_stand_behind_their_hit(words: Path) -> None:
    retriever = MMRHRetriever(words, first_stage="bm25", candidates=1, neighbours="next", reranker=real())
    hit, beside = retriever.retrieve("Where is the lifeboat?")
    assert (hit.node.metadata["page"], beside.node.metadata["page"]) == (2, 3)
    assert (beside.score, beside.node.metadata["mmrh_neighbour_of"]) == (None, 1)
    assert "mmrh_neighbour_of" not in beside.node.get_content(metadata_mode=MetadataMode.LLM)


def test_settings_are_checked(pdf: Path, tmp_path: Path) -> None:
    for wrong in ({"first_stage": "dense"}, {"candidates": 0}, {"similarity_top_k": 0}, {"top_k": 3}, {"files": []}):
        with pytest.raises(SettingsError):
            MMRHRetriever(**({"files": pdf} | wrong))
    (tmp_path / "empty").mkdir()
    with pytest.raises(PageError, match="no PDF and no image"):
        MMRHRetriever(tmp_path / "empty", reranker=real()).retrieve(QUESTION)
    with pytest.raises(PageError, match="outside"):
        MMRHRetriever(pdf, reranker=real(), allowed_root=tmp_path / "empty").retrieve(QUESTION)


def test_a_query_engine_over_files(pdf: Path) -> None:
    retriever = MMRHRetriever(pdf, reranker=real(), similarity_top_k=2)
    asyncio.run(retriever.awarm_up())
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
    answer = engine.query(QUESTION)
    assert len(answer.source_nodes) == 2
    again = asyncio.run(engine.aquery(QUESTION))
    assert [it.node_id for it in again.source_nodes] == [it.node_id for it in answer.source_nodes]
