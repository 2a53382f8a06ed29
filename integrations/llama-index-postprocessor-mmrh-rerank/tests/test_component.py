"""The component: written down and read back, one model for many, inside a query engine."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import TextNode
from mmrh_retriever import HeadSet, PromptOptions, Reranker, SettingsError, release_shared_models
from tests.ranking_stub import StubReranker, tiny

from llama_index.postprocessor.mmrh_rerank import MMRHRerank
from tests.nodes import QUESTION, image_nodes, rerank_events

# Serialisation and sharing


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny().save(tmp_path_factory.mktemp("tiny"))


def test_round_trips(saved: Path) -> None:
    component = MMRHRerank(
        model=saved, heads=HeadSet.parse(["1-2", "0-3"]), top_n=3, score_threshold=0.1, on_error="last", page_base=0,
        dtype="float32", allowed_root=saved, with_regions=True, store=saved / "encoded", store_disk=10**9,
        on_missing_page="drop", options=PromptOptions(question_label="Q: "),
    )  # fmt: skip
    plain = component.to_dict()
    assert plain["class_name"] == "MMRHRerank"
    assert plain["heads"] == ["1-2", "0-3"]
    assert (plain["store"], plain["store_disk"]) == (str(saved / "encoded"), 10**9)
    others = [
        MMRHRerank.from_dict(plain),
        MMRHRerank.from_json(component.to_json()),
        pickle.loads(pickle.dumps(component)),
    ]
    for other in others:
        assert other.to_dict() == plain
        assert list(other.heads) == list(component.heads)
        assert other._held.reranker is None


def test_the_old_name_of_the_final_round_warns_and_works() -> None:
    plain = MMRHRerank().to_dict()
    del plain["final_round"]
    with pytest.warns(DeprecationWarning, match="final_round"):
        component = MMRHRerank.from_dict(plain | {"final_heat": 4})  # as older versions wrote it
    with pytest.warns(DeprecationWarning, match="final_round"):
        assert (component.final_round, component.final_heat) == (4, 4)


def test_a_pickle_of_a_used_component_loads_nothing_and_scores_alike(saved: Path) -> None:
    component = MMRHRerank(model=saved, heads="all")
    nodes = image_nodes(2)
    scores = [it.score for it in component.postprocess_nodes(nodes, query_str=QUESTION)]
    packed = pickle.dumps(component)
    assert len(packed) < 10_000
    other = pickle.loads(packed)
    assert other._held.reranker is None
    assert [it.score for it in other.postprocess_nodes(nodes, query_str=QUESTION)] == scores
    assert other.reranker.backbone.model is component.reranker.backbone.model
    release_shared_models()


def test_a_component_that_could_not_be_read_back_is_not_written_down(reranker: StubReranker) -> None:
    for write in (MMRHRerank.to_dict, MMRHRerank.to_json, pickle.dumps):
        with pytest.raises(ValueError, match="give its folder as model="):
            write(MMRHRerank(reranker=reranker))


def test_a_component_of_a_loaded_reranker_with_a_name_round_trips(saved: Path) -> None:
    loaded = Reranker.from_pretrained(saved, heads="all", calibrate=False)
    plain = MMRHRerank(reranker=loaded).to_dict()
    assert (plain["model"], plain["calibrate"], len(plain["heads"])) == (str(saved), False, len(loaded.heads))
    assert MMRHRerank.from_dict(plain, reranker=loaded).reranker is loaded


def test_pages_are_kept_in_a_folder_for_a_component_read_back(saved: Path, tmp_path: Path) -> None:
    component = MMRHRerank(model=saved, heads="all", independent=True, store=tmp_path / "encoded")
    nodes = image_nodes(2)
    first = [it.score for it in component.postprocess_nodes(nodes, query_str=QUESTION)]
    assert len(list((tmp_path / "encoded").glob("*.safetensors"))) == 2
    other = MMRHRerank.from_dict(component.to_dict())
    assert [it.score for it in other.postprocess_nodes(nodes, query_str=QUESTION)] == first
    kept = other.reranker.store
    assert kept is not None
    assert (kept.hits, kept.misses) == (2, 0)
    release_shared_models()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_warming_up_loads_the_model(saved: Path, mode: str) -> None:
    component = MMRHRerank(model=saved, heads="all")
    if mode == "sync":
        component.warm_up()
    else:
        asyncio.run(component.awarm_up())
    assert component._held.reranker is component.reranker
    release_shared_models()


def test_one_model_for_many_components(saved: Path) -> None:
    release_shared_models()
    components = [MMRHRerank(model=saved, heads="all", top_n=number) for number in (1, 2)]
    components.append(MMRHRerank(model=str(saved), heads=["0-1"]))
    assert len({id(component.reranker.backbone.model) for component in components}) == 1
    release_shared_models()


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(SettingsError, match="top_k"):
        MMRHRerank(top_k=3)


def test_it_is_a_postprocessor_in_a_namespace_package() -> None:
    import llama_index.postprocessor

    assert isinstance(MMRHRerank(), BaseNodePostprocessor)
    assert MMRHRerank.class_name() == "MMRHRerank"
    assert getattr(llama_index.postprocessor, "__file__", None) is None
    home = Path(__file__).parents[1] / "llama_index"
    assert not list(home.glob("__init__.py")) + list(home.glob("postprocessor/__init__.py"))


def test_a_query_engine(pdf: Path, reranker: StubReranker, seen: list[Any]) -> None:
    nodes = [
        TextNode(text=f"sheet {number}", id_=str(number), metadata={"file_path": str(pdf), "page": number + 1})
        for number in range(3)
    ]
    debug = LlamaDebugHandler(print_trace_on_end=False)
    index = VectorStoreIndex(nodes, embed_model=MockEmbedding(embed_dim=4), callback_manager=CallbackManager([debug]))
    engine = index.as_query_engine(
        llm=MockLLM(), similarity_top_k=3, node_postprocessors=[MMRHRerank(reranker=reranker, top_n=2)]
    )
    answer = engine.query(QUESTION)
    assert [it.node_id for it in answer.source_nodes] == ["0", "1"]  # the blackest sheets come last
    assert "retrieval_score" not in str(answer)
    assert len(rerank_events(seen)) == 2
    answer = asyncio.run(engine.aquery(QUESTION))
    assert [it.node_id for it in answer.source_nodes] == ["0", "1"]
