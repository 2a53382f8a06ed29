"""Settings, sharing and pickling, and both components inside LangChain's chains and LangGraph's graphs."""

from __future__ import annotations

import asyncio
import json
import pickle
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.load import dumps, loads
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from mmrh_retriever import PromptOptions, SettingsError, release_shared_models
from tests.ranking_stub import StubReranker, stub, tiny

from langchain_mmrh import MMRHRerank, MMRHRetriever
from tests.fixed_retriever import QUESTION, Fixed, doc, over

# Settings, sharing, writing down


def test_settings_are_checked(pdf: Path) -> None:
    for wrong in ({}, {"files": [pdf], "base_retriever": Fixed(documents=[], asked=[])}):
        with pytest.raises(SettingsError, match="base_retriever=, or files="):
            MMRHRetriever(**wrong)
    for more in ({"k": 0}, {"top_k": 3}, {"first_stage": "dense"}, {"candidates": 0}):
        with pytest.raises(SettingsError):
            MMRHRetriever(files=[pdf], **more)
    with pytest.raises(SettingsError):
        MMRHRerank(topn=3)


def test_the_old_name_of_the_final_round_warns_and_works(pdf: Path) -> None:
    for component, more in ((MMRHRerank, {}), (MMRHRetriever, {"files": [pdf]})):
        with pytest.warns(DeprecationWarning, match="final_round"):
            made = component(final_heat=4, **more)
        with pytest.warns(DeprecationWarning, match="final_round"):
            assert (made.final_round, made.final_heat) == (4, 4)


def test_one_model_for_all_and_pickles_without_it(tmp_path: Path, pdf: Path) -> None:
    release_shared_models()
    tiny().save(tmp_path)
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


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
def test_langchain_writes_settings_down_and_reads_them_back(tmp_path: Path, pdf: Path) -> None:
    more: dict[str, Any] = {
        "model": tmp_path, "heads": ["0-1", "2-3"], "store": tmp_path / "encoded", "store_disk": 10**9,
        "on_missing_page": "drop", "options": PromptOptions(question_label="Q: "),
    }  # fmt: skip
    for made in (MMRHRetriever(files=[pdf], k=2, **more), MMRHRerank(top_n=2, **more)):
        written = dumps(made)
        read = loads(written, allowed_objects=[type(made)], valid_namespaces=["langchain_mmrh"])
        assert read == made
        assert (read.store, read.store_disk) == (str(tmp_path / "encoded"), 10**9)
    unnamed = dumps(MMRHRerank(reranker=stub()))  # its model can't be named
    assert json.loads(unnamed)["type"] == "not_implemented"


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
