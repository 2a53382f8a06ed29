"""Pages beside a hit: documents among the candidates, else made from the PDF; pages of the retriever's files."""

from __future__ import annotations

from pathlib import Path

import pytest
from langchain_core.documents import Document
from tests.ranking_stub import StubReranker, real

from langchain_mmrh import MMRHRerank, MMRHRetriever
from tests.fixed_retriever import QUESTION, REPORT, over


def page_document(pdf: Path, page: int, **metadata: object) -> Document:
    return Document(f"words {page}", metadata={"source": str(pdf), "page": page, **metadata})


def marks(documents: list[Document]) -> list[tuple[int, int | None]]:
    return [(it.metadata["page"], it.metadata.get("mmrh_neighbour_of")) for it in documents]


def test_candidates_come_along_marked_and_beyond_top_n(reranker: StubReranker, pdf: Path) -> None:
    documents = [page_document(pdf, page, mmrh_neighbour_of=9) for page in (2, 1, 0)]  # page 0 is the whitest
    for found in (
        MMRHRerank(reranker=reranker, top_n=1, neighbours="next").compress_documents(documents, QUESTION),
        over(reranker, documents, k=1, neighbours="next").invoke(QUESTION),
    ):
        assert marks(found) == [(0, None), (1, 1)]
        assert found[1].page_content == "words 1"
        assert found[0].metadata["relevance_score"] > found[1].metadata["relevance_score"] > 0
    assert documents[0].metadata["mmrh_neighbour_of"] == 9


def test_a_document_is_made_from_the_pdf_and_leads_to_its_page_again(reranker: StubReranker, pdf: Path) -> None:
    compressor = MMRHRerank(reranker=reranker, neighbours="previous")
    hit, beside = compressor.compress_documents([page_document(pdf, 1)], QUESTION)
    assert (beside.page_content.strip(), beside.id) == ("harbour", f"{pdf}#0")
    assert beside.metadata["source"] == str(pdf)
    assert beside.metadata["relevance_score"] is None
    assert marks([hit, beside]) == [(1, None), (0, 1)]
    compressor.compress_documents([beside], QUESTION)
    assert reranker.calls[-1][0].index == 0
    keyed = MMRHRerank(reranker=reranker, neighbours="next", page_key="sheet", page_base=1)
    _, beside = keyed.compress_documents([Document("words", metadata={"source": str(pdf), "sheet": 1})], QUESTION)
    assert beside.metadata["sheet"] == 2


@pytest.mark.parametrize("first_stage", ["all", "bm25"])
def test_neighbours_out_of_the_retriever_s_files(first_stage: str) -> None:
    files = MMRHRetriever(files=[REPORT], reranker=real(), k=2, first_stage=first_stage, candidates=1)
    hits = files.invoke("lifeboats")
    found = files.model_copy(update={"neighbours": "both"}).invoke("lifeboats")
    shown = {it.metadata["page"]: it for it in found}
    assert len(shown) == len(found) > len(hits)
    assert [it.id for it in found if "mmrh_neighbour_of" not in it.metadata] == [it.id for it in hits]
    for it in found:
        if (rank := it.metadata.get("mmrh_neighbour_of")) is not None:
            assert abs(it.metadata["page"] - hits[rank - 1].metadata["page"]) == 1
