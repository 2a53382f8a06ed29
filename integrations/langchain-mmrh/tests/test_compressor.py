"""The compressor: documents of every kind, and what comes back."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.documents.base import Blob
from mmrh_retriever import PageError, QuestionError
from tests.ranking_stub import StubReranker, png, real

from langchain_mmrh import MMRHRerank, MMRHRetriever
from tests import factories
from tests.fixed_retriever import QUESTION, doc, over

# Pictures


def test_every_image_route_leads_to_the_same_score(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    packed = base64.b64encode(png()).decode()
    uri = f"data:image/png;base64,{packed}"
    documents = [
        *(Document("words", metadata={"image": image}) for image in (factories.page_image(0), png(), packed, uri)),
        Document("words", metadata={"image": str(path)}),
        Document("words", metadata={"image": Blob.from_data(png(), mime_type="image/png")}),
        Document("words", metadata={"blob": Blob.from_path(path)}),
        Document("words", metadata={"image_base64": packed}),
        Document("words", metadata={"image_path": str(path)}),
        Document("words", metadata={"image_path": path}),
        Document("words", metadata={"image_url": uri}),
        Document("words", metadata={"source": str(path)}),
        Document("words", metadata={"file_path": str(path)}),
        Document(packed),
        Document(uri),
    ]
    scorer = real()
    (alone,) = scorer.rank(QUESTION, [factories.page_image(0)])
    for given in documents:
        (found,) = MMRHRerank(reranker=scorer).compress_documents([given], QUESTION)
        assert found.metadata["relevance_score"] == pytest.approx(alone.score, abs=1e-9), given.metadata
        assert type(found.metadata["relevance_score"]) is float


@pytest.mark.parametrize(
    ("metadata", "settings"),
    [
        ({"page": 1}, {}),  # PyMuPDF, PyPDF, PDFMiner and PDFPlumber loaders
        ({"page": 2}, {"page_base": 1}),
        ({"page_label": "2"}, {}),
        ({"sheet": 1, "page": 2}, {"page_key": "sheet"}),
    ],
)
@pytest.mark.parametrize("key", ["source", "file_path"])
def test_pdf_pages_by_every_loader_s_numbers(
    pdf: Path, reranker: StubReranker, key: str, metadata: dict[str, Any], settings: dict[str, Any]
) -> None:
    MMRHRerank(reranker=reranker, **settings).compress_documents(
        [Document("words", metadata={key: str(pdf), **metadata})], QUESTION
    )
    ((page,),) = reranker.calls
    assert page.text == "lifeboat"
    assert page.image is not None


def test_page_zero_is_a_page(pdf: Path, reranker: StubReranker) -> None:
    MMRHRerank(reranker=reranker).compress_documents([Document("", metadata={"source": str(pdf), "page": 0})], QUESTION)
    assert reranker.calls[0][0].text == "harbour"


def test_web_sources_of_text_are_no_images(reranker: StubReranker) -> None:
    given = doc(0.5, metadata={"source": "https://example.org/report.pdf", "page": 3})
    with pytest.warns(UserWarning, match="allow_urls=True") as caught:
        (found,) = MMRHRerank(reranker=reranker).compress_documents([given], QUESTION)
    assert found.metadata["relevance_score"] == 0.5
    assert caught[0].filename == __file__
    with pytest.raises(PageError, match="allow_urls=True"):
        MMRHRerank(reranker=reranker, on_missing_page="raise").compress_documents([given], QUESTION)
    assert MMRHRerank(reranker=reranker, on_missing_page="drop").compress_documents([given], QUESTION) == []


def test_urls_need_permission_and_private_ones_are_refused(reranker: StubReranker) -> None:
    given = [Document("", metadata={"image_url": "http://169.254.169.254/a.png"})]
    with pytest.raises(PageError, match="allow_urls=True"):
        MMRHRerank(reranker=reranker).compress_documents(given, QUESTION)
    with pytest.raises(PageError, match="not a public address"):
        MMRHRerank(reranker=reranker, allow_urls=True).compress_documents(given, QUESTION)


def test_allowed_root_also_holds_for_blobs_and_files(tmp_path: Path, pdf: Path, reranker: StubReranker) -> None:
    (tmp_path / "in").mkdir()
    given = [Document("", metadata={"blob": Blob.from_path(pdf), "page": 0})]
    with pytest.raises(PageError, match="outside"):
        MMRHRerank(reranker=reranker, allowed_root=tmp_path / "in").compress_documents(given, QUESTION)
    with pytest.raises(PageError, match="outside"):
        MMRHRetriever(files=[pdf], reranker=reranker, allowed_root=tmp_path / "in").invoke(QUESTION)


# Results


def test_best_first_top_n_threshold_and_equals_in_order(reranker: StubReranker) -> None:
    documents = [doc(0.25, id="a"), doc(0.5, id="b"), doc(0.25, id="c"), doc(0.75, id="d")]

    def ids(found: list[Document]) -> list[str | None]:
        return [it.id for it in found]

    assert ids(MMRHRerank(reranker=reranker).compress_documents(documents, QUESTION)) == ["d", "b", "a", "c"]
    compressor = MMRHRerank(reranker=reranker, top_n=2)
    assert ids(compressor.compress_documents(documents, QUESTION)) == ["d", "b"]
    assert ids(compressor.compress_documents(documents, QUESTION, top_n=3)) == ["d", "b", "a"]
    assert ids(compressor.compress_documents(documents, QUESTION, score_threshold=0.6)) == ["d"]
    compressor = MMRHRerank(reranker=reranker, score_threshold=0.3)
    assert ids(compressor.compress_documents(documents, QUESTION)) == ["d", "b"]
    with pytest.raises(ValueError, match="top_n"):
        compressor.compress_documents(documents, QUESTION, top_n=0)


def test_input_is_untouched_and_ids_and_metadata_stay(reranker: StubReranker) -> None:
    picture = factories.page_image(0)
    documents = [doc(0.25, id="a", metadata={"n": {"x": 1}}), Document("", id="b", metadata={"image": picture})]
    before = [(it.page_content, it.id, dict(it.metadata)) for it in documents]
    found = MMRHRerank(reranker=reranker, with_regions=True).compress_documents(documents, QUESTION)
    for result in found:
        result.metadata["more"] = 1
    assert [(it.page_content, it.id, dict(it.metadata)) for it in documents] == before
    assert {it.id for it in found} == {"a", "b"}
    assert next(it for it in found if it.id == "a").metadata["n"] == {"x": 1}
    assert not any(it is given for it in found for given in documents)


def test_a_stale_score_never_wins_and_the_first_stage_s_is_kept(reranker: StubReranker) -> None:
    given = doc(0.25, metadata={"relevance_score": 0.99, "retrieval_score": 7, "mmrh_regions": [1], "mmrh_error": "x"})
    (found,) = MMRHRerank(reranker=reranker).compress_documents([given], QUESTION)
    assert found.metadata == {"relevance_score": 0.25, "retrieval_score": 0.99}
    assert found.page_content == given.page_content
    (found,) = MMRHRerank(reranker=reranker, keep_retrieval_score=False).compress_documents([given], QUESTION)
    assert found.metadata == {"relevance_score": 0.25}
    (found,) = MMRHRerank(reranker=reranker).compress_documents([doc(0.25, metadata={"score": 3})], QUESTION)
    assert found.metadata == {"relevance_score": 0.25, "retrieval_score": 3, "score": 3}


def test_on_error(reranker: StubReranker) -> None:
    documents = [Document("", id="bad", metadata={"image_path": "missing.png", "relevance_score": 1.0}), doc(0.5)]
    with pytest.raises(PageError, match="no such file"):
        MMRHRerank(reranker=reranker).compress_documents(documents, QUESTION)
    last = MMRHRerank(reranker=reranker, on_error="last").compress_documents(documents, QUESTION)
    assert [it.metadata["relevance_score"] for it in last] == [0.5, None]
    assert "no such file" in last[1].metadata["mmrh_error"]
    assert len(MMRHRerank(reranker=reranker, on_error="drop").compress_documents(documents, QUESTION)) == 1


def test_regions_on_request(pdf: Path, reranker: StubReranker) -> None:
    given = Document("", metadata={"source": str(pdf), "page": 0})
    (found,) = MMRHRerank(reranker=reranker, with_regions=True).compress_documents([given], QUESTION)
    regions = found.metadata["mmrh_regions"]
    assert regions
    assert regions[0].keys() == {"box", "page_size", "kind", "score", "text"}
    json.dumps(regions)


def test_empty_input_and_empty_questions(reranker: StubReranker) -> None:
    assert MMRHRerank(reranker=reranker).compress_documents([], QUESTION) == []
    assert over(reranker, []).invoke(QUESTION) == []
    assert reranker.calls == []
    with pytest.raises(QuestionError, match="empty"):
        MMRHRerank(reranker=reranker).compress_documents([doc(0.5)], " ")


def test_batches_are_bounded_by_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = real(token_budget=700)
    engine = type(scorer.engine())
    ask, windows = engine.ask, []

    def spied(self: Any, window: Any, *args: Any, **more: Any) -> Any:
        windows.append(len(window))
        return ask(self, window, *args, **more)

    monkeypatch.setattr(engine, "ask", spied)
    documents = [Document("", metadata={"image": factories.page_image(seed)}) for seed in range(40)]
    assert len(MMRHRerank(reranker=scorer).compress_documents(documents, QUESTION)) == 40
    assert len(windows) > 1
    assert max(windows) <= 700


def test_the_callers_list_may_change_meanwhile(reranker: StubReranker, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [Document("score=0.2"), Document("score=0.7")]
    ranked = reranker.rank

    def rank(*given: Any, **options: Any) -> Any:
        documents.clear()
        return ranked(*given, **options)

    monkeypatch.setattr(reranker, "rank", rank)
    found = MMRHRerank(reranker=reranker).compress_documents(documents, QUESTION)
    assert [document.page_content for document in found] == ["score=0.7", "score=0.2"]


def test_a_blob_that_cannot_be_encoded_costs_itself_alone(reranker: StubReranker) -> None:
    bad = Document("", metadata={"blob": Blob.from_data("\ud800")})
    found = MMRHRerank(reranker=reranker, on_error="drop").compress_documents([bad, Document("score=0.7")], QUESTION)
    assert [document.page_content for document in found] == ["score=0.7"]


@pytest.mark.parametrize("key", ["relevance_score", "score"])
def test_scores_are_blended_with_those_of_the_retriever(reranker: StubReranker, key: str) -> None:
    documents = [doc(0.3, metadata={key: 0.9}), doc(0.6, metadata={key: 0.1}), doc(0.5, metadata={key: 0.8})]
    blend = MMRHRerank(reranker=reranker, fuse="blend", retrieval_weight=1.0)
    found = blend.compress_documents(documents, QUESTION)
    assert [it.page_content for it in found] == [documents[index].page_content for index in (0, 2, 1)]
    assert [it.metadata["retrieval_score"] for it in found] == [0.9, 0.8, 0.1]
    assert sum(it.metadata["relevance_score"] for it in found) == pytest.approx(1)
    plain = MMRHRerank(reranker=reranker).compress_documents(documents, QUESTION)
    assert [it.metadata["relevance_score"] for it in plain] == pytest.approx([0.6, 0.5, 0.3])
