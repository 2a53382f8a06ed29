"""The compressor and the retriever: documents of every kind, files, callbacks, chains and graphs."""

from __future__ import annotations

import asyncio
import base64
import copy
import io
import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict

import pymupdf
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.documents.base import Blob
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from mmrh_retriever import ContextOverflowError, Page, PageError, QuestionError, read_pdf
from mmrh_retriever.ranking.shared_models import release_shared_models
from pydantic import ValidationError
from tests.ranking_stub import StubReranker, real, stub, tiny

from langchain_mmrh import MMRHRerank, MMRHRetriever
from langchain_mmrh.library import shortlist
from tests import factories

QUESTION = "How did revenue change?"
REPORT = Path(__file__).parents[3] / "examples" / "sample_report.pdf"


def png(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    factories.page_image(seed).save(stream, "PNG")
    return stream.getvalue()


def doc(score: float, **fields: Any) -> Document:
    return Document(f"score={score}", **fields)


class Fixed(BaseRetriever):
    """Gives what it holds, and notes how it was called."""

    documents: list[Document]
    asked: list[dict[str, Any]]

    def _get_relevant_documents(self, query: str, *, run_manager: Any, **kwargs: Any) -> list[Document]:
        self.asked.append(kwargs)
        return self.documents

    async def _aget_relevant_documents(self, query: str, *, run_manager: Any, **kwargs: Any) -> list[Document]:
        self.asked.append({"async": True, **kwargs})
        return self.documents


def over(reranker: Any, documents: list[Document], **settings: Any) -> MMRHRetriever:
    return MMRHRetriever(base_retriever=Fixed(documents=documents, asked=[]), reranker=reranker, **settings)


class Told(BaseCallbackHandler):
    """Notes the starts, ends and errors of retrievers, with their parents."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any, Any]] = []

    def on_retriever_start(self, *_: Any, run_id: Any, parent_run_id: Any = None, **__: Any) -> None:
        self.events.append(("start", run_id, parent_run_id))

    def on_retriever_end(self, *_: Any, run_id: Any, parent_run_id: Any = None, **__: Any) -> None:
        self.events.append(("end", run_id, parent_run_id))

    def on_retriever_error(self, *_: Any, run_id: Any, parent_run_id: Any = None, **__: Any) -> None:
        self.events.append(("error", run_id, parent_run_id))


@pytest.fixture
def reranker() -> StubReranker:
    return stub()


@pytest.fixture
def pdf(tmp_path: Path) -> Path:
    document = pymupdf.open()
    for number, word in enumerate(("harbour", "lifeboat", "")):
        page = document.new_page(width=200, height=300)
        page.insert_text((20, 40), word)
        page.draw_rect((0, 100, 200, 100 + 60 * number), fill=(0, 0, 0))
    document.save(tmp_path / "report.pdf")
    return tmp_path / "report.pdf"


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
    (found,) = MMRHRerank(reranker=reranker).compress_documents([given], QUESTION)
    assert found.metadata["relevance_score"] == 0.5


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


# Callbacks, async, threads


@pytest.mark.parametrize("documents", [[], [doc(0.5)]])
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_start_and_end_are_always_told_and_the_base_is_a_child(
    reranker: StubReranker, documents: list[Document], mode: str
) -> None:
    told = Told()
    retriever = over(reranker, documents)
    if mode == "sync":
        retriever.invoke(QUESTION, config={"callbacks": [told]})
    else:
        asyncio.run(retriever.ainvoke(QUESTION, config={"callbacks": [told]}))
    own = told.events[0][1]
    assert [name for name, *_ in told.events] == ["start", "start", "end", "end"]
    assert told.events[1][2] == own
    assert told.events[3][1] == own


def test_a_failure_is_told(reranker: StubReranker) -> None:
    told = Told()
    with pytest.raises(PageError):
        over(reranker, [Document("", metadata={"image_path": "missing.png"})]).invoke(
            QUESTION, config={"callbacks": [told]}
        )
    assert [name for name, *_ in told.events] == ["start", "start", "end", "error"]


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


def test_batches_are_bounded_by_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = real(token_budget=700)
    engine = type(scorer._engine())
    ask, windows = engine.ask, []

    def spied(self: Any, window: Any, *args: Any, **more: Any) -> Any:
        windows.append(len(window))
        return ask(self, window, *args, **more)

    monkeypatch.setattr(engine, "ask", spied)
    documents = [Document("", metadata={"image": factories.page_image(seed)}) for seed in range(40)]
    assert len(MMRHRerank(reranker=scorer).compress_documents(documents, QUESTION)) == 40
    assert len(windows) > 1
    assert max(windows) <= 700


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


def test_words_shorten_the_list_and_pages_without_words_stay(pdf: Path, reranker: StubReranker) -> None:
    pytest.importorskip("bm25s")
    retriever = MMRHRetriever(files=[pdf], first_stage="bm25", candidates=1, reranker=reranker)
    found = retriever.invoke("Where is the lifeboat?")
    assert [it.metadata["page"] for it in found] == [1, 2]
    pages = [Page(text="no such thing"), Page(text="the lifeboat"), Page(image=factories.page_image(0))]
    assert shortlist("lifeboat", pages, 1) == pages[1:]
    assert shortlist("lifeboat", pages, 9) == pages


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
@pytest.mark.skipif(not hasattr(real(), "rank_regions"), reason="this core ranks pages only")
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


# Settings, sharing, writing down


def test_settings_are_checked(pdf: Path) -> None:
    for wrong in ({}, {"files": [pdf], "base_retriever": Fixed(documents=[], asked=[])}):
        with pytest.raises(ValidationError, match="base_retriever=, or files="):
            MMRHRetriever(**wrong)
    for more in ({"k": 0}, {"top_k": 3}, {"first_stage": "dense"}, {"candidates": 0}):
        with pytest.raises(ValidationError):
            MMRHRetriever(files=[pdf], **more)
    with pytest.raises(ValidationError):
        MMRHRerank(topn=3)


def test_one_model_for_all_and_pickles_without_it(tmp_path: Path, pdf: Path) -> None:
    release_shared_models()
    tiny().model.save_pretrained(tmp_path)
    tiny().tokenizer.save_pretrained(tmp_path)
    tiny().image_processor.save_pretrained(tmp_path)
    compressor = MMRHRerank(model=tmp_path, heads="all")
    retriever = MMRHRetriever(model=tmp_path, heads=["0-1", "2-3"], files=[pdf])
    assert compressor.reranker.backbone.model is retriever.reranker.backbone.model
    found = retriever.invoke(QUESTION)
    packed = pickle.dumps(retriever)
    assert len(packed) < 10_000
    other = pickle.loads(packed)
    assert other.invoke(QUESTION) == found
    assert other == retriever
    assert MMRHRerank(**compressor.model_dump()) == compressor
    release_shared_models()


def test_kinds() -> None:
    assert issubclass(MMRHRerank, BaseDocumentCompressor)
    assert issubclass(MMRHRetriever, BaseRetriever)


# In LangChain


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_contextual_compression_retriever(reranker: StubReranker, mode: str) -> None:
    retrievers = pytest.importorskip("langchain_classic.retrievers")
    retriever = retrievers.ContextualCompressionRetriever(
        base_compressor=MMRHRerank(reranker=reranker, top_n=1),
        base_retriever=Fixed(documents=[doc(0.25), doc(0.5)], asked=[]),
    )
    found = retriever.invoke(QUESTION) if mode == "sync" else asyncio.run(retriever.ainvoke(QUESTION))
    assert [it.page_content for it in found] == ["score=0.5"]


def test_a_chain(reranker: StubReranker) -> None:
    asked: list[str] = []

    def shown(documents: list[Document]) -> str:
        return "\n".join(it.page_content for it in documents)

    chain = (
        {"context": over(reranker, [doc(0.25), doc(0.5)], k=1) | shown, "question": RunnablePassthrough()}
        | ChatPromptTemplate.from_template("{context}\n{question}")
        | RunnableLambda(lambda prompt: (asked.append(prompt.to_string()), prompt)[1])
        | FakeListChatModel(responses=["It grew."])
        | StrOutputParser()
    )
    assert chain.invoke(QUESTION) == "It grew."
    assert asked == [f"Human: score=0.5\n{QUESTION}"]
    assert asyncio.run(chain.ainvoke(QUESTION)) == "It grew."
    assert over(reranker, [doc(0.5)]).batch([QUESTION, QUESTION])[1][0].metadata["relevance_score"] == 0.5


class State(TypedDict):
    question: str
    found: list[Document]


def test_a_graph(reranker: StubReranker) -> None:
    graphs = pytest.importorskip("langgraph.graph")
    retriever = over(reranker, [doc(0.25), doc(0.5)])
    compressor = MMRHRerank(reranker=reranker, top_n=1)
    graph = graphs.StateGraph(State)
    graph.add_node("retrieve", lambda state: {"found": retriever.invoke(state["question"])})

    async def rerank(state: State) -> dict[str, Any]:
        return {"found": await compressor.acompress_documents(state["found"], state["question"])}

    graph.add_node("rerank", rerank)
    graph.add_edge(graphs.START, "retrieve")
    graph.add_edge("retrieve", "rerank")
    app = graph.compile()
    found = asyncio.run(app.ainvoke({"question": QUESTION, "found": []}))["found"]
    assert [it.page_content for it in found] == ["score=0.5"]
    assert found[0].metadata["retrieval_score"] == 0.5
