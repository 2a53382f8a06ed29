"""The component: written down and read back, one model for many, inside pipelines with Haystack's own components."""

from __future__ import annotations

import asyncio
import copy
import json
from pathlib import Path
from typing import Any

import haystack
import pytest
from haystack import Document, Pipeline
from haystack.components.builders import PromptBuilder
from haystack.components.converters import PyPDFToDocument
from haystack.components.preprocessors import DocumentSplitter
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.telemetry import _telemetry
from haystack.utils import ComponentDevice
from mmrh_retriever import HeadSet, PromptOptions, Reranker, SettingsError, release_shared_models
from tests.ranking_stub import StubReranker, tiny

import haystack_integrations
from haystack_integrations.components.rankers.mmrh import MMRHRanker

QUESTION = "Where is the lifeboat?"
AsyncPipeline = getattr(haystack, "AsyncPipeline", Pipeline)  # one class since 3.0
warns_of_nothing = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny().save(tmp_path_factory.mktemp("tiny"))


def test_nothing_is_sent_from_tests() -> None:
    assert _telemetry.telemetry is None


# Written down, shared


def test_round_trips(saved: Path) -> None:
    ranker = MMRHRanker(
        saved, top_k=3, heads=HeadSet.parse(["1-2", "0-3"]), score_threshold=0.1, on_error="last", page_base=0,
        dtype="float32", device=ComponentDevice.from_str("cpu"), allowed_root=saved, with_regions=True,
        store=saved / "encoded", on_missing_page="drop", options=PromptOptions(question_label="Q: "),
    )  # fmt: skip
    plain = ranker.to_dict()
    assert plain["type"] == "haystack_integrations.components.rankers.mmrh.ranker.MMRHRanker"
    given = plain["init_parameters"]
    assert (given["model"], given["top_k"], given["heads"], given["device"]) == (str(saved), 3, ["1-2", "0-3"], "cpu")
    other = MMRHRanker.from_dict(json.loads(json.dumps(plain)))
    assert other.to_dict() == plain
    assert other.settings == ranker.settings
    assert other.settings._held.reranker is None
    assert MMRHRanker.from_dict({"type": plain["type"], "init_parameters": {}}).settings == MMRHRanker().settings


def test_a_ranker_that_could_not_be_read_back_is_not_written_down(reranker: StubReranker, saved: Path) -> None:
    with pytest.raises(SettingsError, match="give its folder as model="):
        MMRHRanker(reranker=reranker).to_dict()
    loaded = Reranker.from_pretrained(saved, heads="all", calibrate=False)
    given = MMRHRanker(reranker=loaded).to_dict()["init_parameters"]
    assert (given["model"], given["calibrate"], len(given["heads"])) == (str(saved), False, len(loaded.heads))


def test_settings_are_checked() -> None:
    for wrong in ({"top_n": 3}, {"top_k": 0}, {"on_error": "ignore"}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            MMRHRanker(**wrong)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_warming_up_loads_the_model_once(saved: Path, mode: str) -> None:
    release_shared_models()
    ranker = MMRHRanker(saved, heads="all")
    if mode == "sync":
        ranker.warm_up()
    else:
        asyncio.run(ranker.warm_up_async())
    held = ranker.settings._held.reranker
    assert held is not None
    assert held is copy.deepcopy(ranker).settings.reranker
    assert held.backbone.model is MMRHRanker(str(saved), heads=["0-1"]).settings.reranker.backbone.model
    release_shared_models()


def test_it_lies_in_haystack_s_namespace() -> None:
    assert getattr(haystack_integrations, "__file__", None) is None
    home = Path(__file__).parents[1] / "src"
    assert [path.parent.name for path in home.rglob("__init__.py")] == ["mmrh"]


# In pipelines


def query_pipeline(ranker: MMRHRanker, documents: list[Document], kind: type = Pipeline) -> Any:
    store = InMemoryDocumentStore()
    store.write_documents(documents)
    pipeline = kind()
    pipeline.add_component("retriever", InMemoryBM25Retriever(store, top_k=10))
    pipeline.add_component("ranker", ranker)
    template = "{% for document in documents %}{{ document.content }};{% endfor %}{{ query }}"
    pipeline.add_component("prompt", PromptBuilder(template, required_variables=["documents", "query"]))
    pipeline.connect("retriever.documents", "ranker.documents")
    pipeline.connect("ranker.documents", "prompt.documents")
    return pipeline


def test_a_pipeline_is_written_down_and_read_back(saved: Path) -> None:
    pipeline = query_pipeline(MMRHRanker(saved, heads="all", top_k=2, neighbours="both"), [])
    read = Pipeline.loads(pipeline.dumps()).get_component("ranker")
    assert read.to_dict() == pipeline.get_component("ranker").to_dict()
    assert (read.settings.top_k, read.settings.neighbours) == (2, "both")


@warns_of_nothing
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_in_a_pipeline(reranker: StubReranker, mode: str) -> None:
    documents = [Document(content=f"lifeboat {mode} score={score}") for score in (0.25, 0.75, 0.5)]
    pipeline = query_pipeline(MMRHRanker(reranker=reranker), documents, Pipeline if mode == "sync" else AsyncPipeline)
    asked = {"retriever": {"query": QUESTION}, "ranker": {"query": QUESTION, "top_k": 2}, "prompt": {"query": QUESTION}}
    if mode == "sync":
        given = pipeline.run(asked, include_outputs_from={"ranker"})
    else:
        given = asyncio.run(pipeline.run_async(asked, include_outputs_from={"ranker"}))
    assert [it.score for it in given["ranker"]["documents"]] == [0.75, 0.5]
    assert all(it.meta["retrieval_score"] > 0 for it in given["ranker"]["documents"])
    assert given["prompt"]["prompt"] == f"lifeboat {mode} score=0.75;lifeboat {mode} score=0.5;{QUESTION}"


def test_a_warning_names_the_line_that_runs_the_pipeline(reranker: StubReranker) -> None:
    given = Document(content="lifeboat score=0.5", meta={"file_path": "in_a_pipeline.pdf", "page_number": 1})
    pipeline = query_pipeline(MMRHRanker(reranker=reranker), [given])
    asked = {"retriever": {"query": QUESTION}, "ranker": {"query": QUESTION}, "prompt": {"query": QUESTION}}
    with pytest.warns(UserWarning, match="Its text is scored") as caught:
        pipeline.run(asked)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("full", [True, False])
def test_pages_of_haystack_s_own_converter_and_splitters(pdf: Path, reranker: StubReranker, full: bool) -> None:
    """By page and by word: each chunk leads to the page that it is on, with the whole path or the name alone."""
    ranker = MMRHRanker(reranker=reranker, allowed_root=pdf.parent)
    converted = PyPDFToDocument(store_full_path=full).run(sources=[pdf])["documents"]
    assert converted[0].meta["file_path"] == (str(pdf) if full else "report.pdf")
    for by, expected in (("page", [1, 2, 3]), ("word", [1, 1, 2, 3])):
        splitter = DocumentSplitter(split_by=by, split_length=1)
        if hasattr(splitter, "warm_up"):
            splitter.warm_up()
        chunks = splitter.run(documents=converted)["documents"]
        assert [it.meta["page_number"] for it in chunks] == expected
        for chunk, number in zip(chunks, expected, strict=True):
            ranker.run(QUESTION, [chunk])
            (page,) = reranker.calls[-1]
            assert page.number == number
            assert (chunk.content or "").split()[0] in (page.text or "")
            assert page.image is not None
