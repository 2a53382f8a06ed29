"""The postprocessor: nodes of every kind, events, serialisation, async, a real query engine."""

from __future__ import annotations

import asyncio
import base64
import copy
import io
import json
import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pymupdf
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import (
    Document,
    ImageDocument,
    ImageNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeWithScore,
    QueryBundle,
    TextNode,
)
from mmrh_retriever import HeadSet, PageError, QuestionError, Reranker, read_pdf
from mmrh_retriever.ranking.shared_models import release_shared_models
from tests.ranking_stub import StubReranker, real, stub, tiny

from llama_index.postprocessor.mmrh_rerank import MMRHRerank
from tests import factories

QUESTION = "How did revenue change?"


def png(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    factories.page_image(seed).save(stream, "PNG")
    return stream.getvalue()


def node(score: float, **fields: Any) -> NodeWithScore:
    return NodeWithScore(node=TextNode(text=f"score={score}", **fields), score=0.9)


@pytest.fixture
def reranker() -> StubReranker:
    return stub()


@pytest.fixture
def pdf(tmp_path: Path) -> Path:
    document = pymupdf.open()
    for number in range(3):
        page = document.new_page(width=200, height=300)
        page.insert_text((20, 40), f"sheet {number}")
        page.draw_rect((0, 100, 200, 100 + 60 * number), fill=(0, 0, 0))
    document.set_page_labels([{"startpage": 0, "prefix": "A-", "style": "D"}])
    document.save(tmp_path / "report.pdf")
    return tmp_path / "report.pdf"


class Seen(BaseEventHandler):
    """Keeps the events that it is told of."""

    events: list[Any]

    @classmethod
    def class_name(cls) -> str:
        return "Seen"

    def handle(self, event: Any, **_: Any) -> None:
        self.events.append(event)


@pytest.fixture
def seen() -> Iterator[list[Any]]:
    handler = Seen(events=[])
    root = get_dispatcher()
    root.add_event_handler(handler)
    yield handler.events
    root.event_handlers.remove(handler)


def rerank_events(seen: list[Any]) -> list[Any]:
    return [event for event in seen if isinstance(event, (ReRankStartEvent, ReRankEndEvent, ExceptionEvent))]


# Pictures


def test_every_image_route_leads_to_the_same_score(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    packed = base64.b64encode(png()).decode()
    nodes = [
        ImageNode(image=packed),
        ImageNode(image_path=str(path)),
        ImageNode(image_url=f"data:image/png;base64,{packed}"),
        Node(image_resource=MediaResource(data=png())),
        Node(image_resource=MediaResource(data=packed.encode())),
        Node(image_resource=MediaResource(path=path)),
        Document(image_resource=MediaResource(data=png())),
        ImageDocument(image=packed),
        ImageDocument(image_path=str(path)),
        TextNode(text="words", metadata={"image_path": str(path)}),
        TextNode(text="words", metadata={"file_path": str(path)}),
        TextNode(text="words", metadata={"image": packed}),
        TextNode(text="words", metadata={"image": png()}),
        TextNode(text="words", metadata={"image": factories.page_image(0)}),
    ]
    reranker = real()
    (alone,) = reranker.rank(QUESTION, [factories.page_image(0)])
    for given in nodes:
        (found,) = MMRHRerank(reranker=reranker).postprocess_nodes([NodeWithScore(node=given)], query_str=QUESTION)
        assert found.score == pytest.approx(alone.score, abs=1e-9), given
        assert type(found.score) is float


def test_own_image_comes_before_metadata(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    given = ImageNode(image=base64.b64encode(png(0)).decode(), metadata={"file_path": str(tmp_path / "a.png")})
    clues = MMRHRerank().clues(NodeWithScore(node=given))
    assert clues.image == given.image
    given = ImageNode(image_path="own.png", metadata={"image_path": "other.png", "image": png(1)})
    clues = MMRHRerank().clues(NodeWithScore(node=given))
    assert (clues.image, clues.image_path) == (None, "own.png")


@pytest.mark.parametrize(
    ("metadata", "settings"),
    [
        ({"page": 2}, {}),  # pymupdf4llm's reader
        ({"source": "2"}, {}),  # PyMuPDFReader
        ({"page_label": "A-2"}, {}),  # PDFReader
        ({"page": 1}, {"page_base": 0}),
        ({"sheet": 2, "page": 3}, {"page_key": "sheet"}),
    ],
)
def test_pdf_pages_by_every_reader_s_numbers(
    pdf: Path, reranker: StubReranker, metadata: dict[str, Any], settings: dict[str, Any]
) -> None:
    given = NodeWithScore(node=TextNode(text="words", metadata={"file_path": str(pdf), **metadata}))
    MMRHRerank(reranker=reranker, **settings).postprocess_nodes([given], query_str=QUESTION)
    ((page,),) = reranker.calls
    assert page.text == "sheet 1"
    assert page.image is not None


def test_text_alone_is_scored_as_text(reranker: StubReranker) -> None:
    given = NodeWithScore(node=Node(text_resource=MediaResource(text="score=0.5")))
    (found,) = MMRHRerank(reranker=reranker).postprocess_nodes([given], query_str=QUESTION)
    assert found.score == 0.5


def test_urls_need_permission_and_private_ones_are_refused(reranker: StubReranker) -> None:
    given = NodeWithScore(node=ImageNode(image_url="http://127.0.0.1/a.png"))
    with pytest.raises(PageError, match="allow_urls=True"):
        MMRHRerank(reranker=reranker).postprocess_nodes([given], query_str=QUESTION)
    with pytest.raises(PageError, match="not a public address"):
        MMRHRerank(reranker=reranker, allow_urls=True).postprocess_nodes([given], query_str=QUESTION)


def test_allowed_root(tmp_path: Path, reranker: StubReranker) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    component = MMRHRerank(reranker=reranker, allowed_root=tmp_path / "in")
    with pytest.raises(PageError, match="outside"):
        component.postprocess_nodes(
            [NodeWithScore(node=ImageNode(image_path=str(tmp_path / "in" / "link.png")))], query_str=QUESTION
        )


# Results


def test_best_first_top_n_threshold_and_equals_in_order(reranker: StubReranker) -> None:
    nodes = [node(0.25, id_="a"), node(0.5, id_="b"), node(0.25, id_="c"), node(0.75, id_="d")]

    def ids(found: list[NodeWithScore]) -> list[str]:
        return [it.node_id for it in found]

    assert ids(MMRHRerank(reranker=reranker).postprocess_nodes(nodes, query_str=QUESTION)) == ["d", "b", "a", "c"]
    component = MMRHRerank(reranker=reranker, top_n=2)
    assert ids(component.postprocess_nodes(nodes, query_str=QUESTION)) == ["d", "b"]
    assert ids(component.rerank(nodes, QUESTION, top_n=3)) == ["d", "b", "a"]
    component = MMRHRerank(reranker=reranker, score_threshold=0.3)
    assert ids(component.postprocess_nodes(nodes, query_str=QUESTION)) == ["d", "b"]
    assert ids(component.rerank(nodes, QUESTION, score_threshold=0.6)) == ["d"]
    with pytest.raises(ValueError, match="top_n"):
        component.rerank(nodes, QUESTION, top_n=0)


def test_top_n_per_call(reranker: StubReranker) -> None:
    component = MMRHRerank(reranker=reranker, top_n=1)
    assert len(component.rerank([node(0.1), node(0.2), node(0.3)], QUESTION, top_n=2)) == 2
    assert component.top_n == 1


def test_input_is_untouched_and_output_shares_nothing_that_changes(reranker: StubReranker) -> None:
    nodes = [node(0.25, metadata={"page": 3, "nested": {"a": 1}}), node(0.5)]
    before = copy.deepcopy(nodes)
    found = MMRHRerank(reranker=reranker, with_regions=True).postprocess_nodes(nodes, query_str=QUESTION)
    assert nodes == before
    for result in found:
        result.node.metadata["more"] = 1
        result.node.excluded_llm_metadata_keys.append("more")
    assert nodes == before
    assert {it.node_id for it in found} == {it.node_id for it in nodes}


def test_first_stage_score_is_kept_and_hidden(reranker: StubReranker) -> None:
    given = node(0.25, metadata={"title": "Report"}, excluded_llm_metadata_keys=["title"])
    given.node.excluded_embed_metadata_keys = []
    (found,) = MMRHRerank(reranker=reranker).postprocess_nodes([given], query_str=QUESTION)
    assert (found.score, found.metadata["retrieval_score"]) == (0.25, 0.9)
    for mode in (MetadataMode.LLM, MetadataMode.EMBED):
        assert found.get_content(mode) == given.get_content(mode)
    (found,) = MMRHRerank(reranker=reranker, keep_retrieval_score=False).postprocess_nodes([given], query_str=QUESTION)
    assert "retrieval_score" not in found.metadata


def test_stale_notes_do_not_survive(reranker: StubReranker) -> None:
    given = node(0.25, metadata={"retrieval_score": 5.0, "mmrh_regions": [1], "mmrh_error": "old"})
    (found,) = MMRHRerank(reranker=reranker).postprocess_nodes([given], query_str=QUESTION)
    assert found.metadata == {"retrieval_score": 0.9}


def test_on_error(reranker: StubReranker) -> None:
    nodes = [NodeWithScore(node=ImageNode(image_path="missing.png", id_="bad"), score=1.0), node(0.5, id_="good")]
    with pytest.raises(PageError, match="no such file"):
        MMRHRerank(reranker=reranker).postprocess_nodes(nodes, query_str=QUESTION)
    last = MMRHRerank(reranker=reranker, on_error="last").postprocess_nodes(nodes, query_str=QUESTION)
    assert [(it.node_id, it.score) for it in last] == [("good", 0.5), ("bad", None)]
    assert "no such file" in last[1].metadata["mmrh_error"]
    assert last[1].get_content(MetadataMode.LLM) == ""
    drop = MMRHRerank(reranker=reranker, on_error="drop").postprocess_nodes(nodes, query_str=QUESTION)
    assert [it.node_id for it in drop] == ["good"]


def test_regions_on_request(pdf: Path, reranker: StubReranker) -> None:
    given = NodeWithScore(node=TextNode(text="words", metadata={"file_path": str(pdf), "page": 2}))
    (found,) = MMRHRerank(reranker=reranker, with_regions=True, regions_per_page=2).postprocess_nodes(
        [given], query_str=QUESTION
    )
    regions = found.metadata["mmrh_regions"]
    assert 1 <= len(regions) <= 2
    assert regions[0].keys() == {"box", "page_size", "kind", "score", "text"}
    assert regions[0]["page_size"] == [200.0, 300.0]
    json.dumps(regions)
    assert found.get_content(MetadataMode.LLM) == given.get_content(MetadataMode.LLM)


@pytest.mark.skipif(not hasattr(real(), "rank_regions"), reason="this core ranks pages only")
def test_real_regions_are_those_of_the_core(pdf: Path) -> None:
    reranker = real()
    pages = read_pdf(pdf, layout=True)
    best = reranker.rank_regions(QUESTION, [pages[1]])[0]
    given = NodeWithScore(node=TextNode(text="words", metadata={"file_path": str(pdf), "page": 2}))
    (found,) = MMRHRerank(reranker=reranker, with_regions=True).postprocess_nodes([given], query_str=QUESTION)
    assert found.metadata["mmrh_regions"][0]["box"] == pytest.approx(list(best.box))
    assert found.metadata["mmrh_regions"][0]["score"] == pytest.approx(best.score, abs=1e-9)


def test_batches_are_bounded_by_tokens() -> None:
    """Forty image nodes: no pass through the decoder, and no window, is longer than the token budget."""
    reranker = real(token_budget=700)
    passes: list[int] = []
    windows: list[int] = []
    decoder = reranker.backbone.model.model.language_model
    hook = decoder.register_forward_pre_hook(
        lambda _, args, kwargs: passes.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    nodes = [NodeWithScore(node=ImageNode(image=base64.b64encode(png(seed)).decode())) for seed in range(40)]
    engine = type(reranker._engine())
    spied, ask = engine.ask, engine.ask
    try:
        engine.ask = lambda self, window, *args, **more: (  # type: ignore[method-assign]
            windows.append(len(window)),
            spied(self, window, *args, **more),
        )[1]
        found = MMRHRerank(reranker=reranker).postprocess_nodes(nodes, query_str=QUESTION)
    finally:
        engine.ask = ask  # type: ignore[method-assign]
        hook.remove()
    assert len(found) == 40
    assert len(windows) > 1
    assert max(windows) <= 700
    assert max(passes, default=0) <= 700


def test_scores_do_not_depend_on_the_order_of_calls() -> None:
    component = MMRHRerank(reranker=real())
    nodes = [NodeWithScore(node=ImageNode(image=base64.b64encode(png(seed)).decode())) for seed in range(3)]
    first = [it.score for it in component.postprocess_nodes(nodes, query_str=QUESTION)]
    component.postprocess_nodes(nodes[:1], query_str="Something else?")
    assert [it.score for it in component.postprocess_nodes(nodes, query_str=QUESTION)] == first


# Questions


def test_questions_without_text_are_refused_clearly(reranker: StubReranker) -> None:
    component = MMRHRerank(reranker=reranker)
    for bundle in (QueryBundle(query_str="", image_path="query.png"), QueryBundle(query_str=" "), None):
        with pytest.raises(QuestionError, match=r"empty.*image alone"):
            component.postprocess_nodes([node(0.5)], query_bundle=bundle)


# Events


def test_events_start_and_end(reranker: StubReranker, seen: list[Any]) -> None:
    nodes = [node(0.25), node(0.5)]
    found = MMRHRerank(reranker=reranker, top_n=1).postprocess_nodes(nodes, query_str=QUESTION)
    start, end = rerank_events(seen)
    assert isinstance(start, ReRankStartEvent)
    assert start.query.query_str == QUESTION
    assert (start.top_n, start.model_name) == (1, "Qwen3VLForConditionalGeneration")
    assert [it.node_id for it in start.nodes] == [it.node_id for it in nodes]
    assert isinstance(end, ReRankEndEvent)
    assert end.nodes == found


def test_events_on_empty_input(reranker: StubReranker, seen: list[Any]) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    component = MMRHRerank(reranker=reranker, callback_manager=CallbackManager([debug]))
    assert component.postprocess_nodes([], query_str=QUESTION) == []
    assert component.postprocess_nodes([]) == []
    assert [type(event) for event in rerank_events(seen)] == [ReRankStartEvent, ReRankEndEvent] * 2
    assert rerank_events(seen)[0].top_n == 0
    assert len(debug.get_event_pairs(CBEventType.RERANKING)) == 2
    assert reranker.calls == []


def test_events_on_failure(reranker: StubReranker, seen: list[Any]) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    component = MMRHRerank(reranker=reranker, callback_manager=CallbackManager([debug]))
    with pytest.raises(QuestionError):
        component.postprocess_nodes([node(0.5)])
    kinds = [type(event) for event in rerank_events(seen)]
    assert kinds[0] is ReRankStartEvent
    assert kinds[-1] is ReRankEndEvent
    assert ExceptionEvent in kinds
    (pair,) = debug.get_event_pairs(CBEventType.RERANKING)
    assert isinstance(pair[1].payload[EventPayload.EXCEPTION], QuestionError)


def test_callbacks_and_a_manager_set_later(reranker: StubReranker) -> None:
    component = MMRHRerank(reranker=reranker)
    debug = LlamaDebugHandler(print_trace_on_end=False)
    component.callback_manager = CallbackManager([debug])
    found = component.postprocess_nodes([node(0.25), node(0.5)], query_str=QUESTION)
    ((start, end),) = debug.get_event_pairs(CBEventType.RERANKING)
    assert start.payload[EventPayload.QUERY_STR] == QUESTION
    assert start.payload[EventPayload.TOP_K] == 2
    assert start.payload[EventPayload.MODEL_NAME] == "Qwen3VLForConditionalGeneration"
    assert len(start.payload[EventPayload.NODES]) == 2
    assert end.payload[EventPayload.NODES] == found


# Async and threads


async def wait_beside(work: Any) -> tuple[Any, int]:
    """The result of something awaited, and how often the loop turned meanwhile."""
    turns = 0
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.sleep(0.005)
        turns += 1
    return task.result(), turns


def test_async_leaves_the_loop_free(reranker: StubReranker, seen: list[Any]) -> None:
    component = MMRHRerank(reranker=reranker)
    nodes = [node(0.25), node(0.5)]
    rank = reranker.rank
    reranker.rank = lambda *args, **more: (time.sleep(0.2), rank(*args, **more))[1]  # type: ignore[method-assign]
    found, turns = asyncio.run(wait_beside(component.apostprocess_nodes(nodes, query_str=QUESTION)))
    assert turns > 5
    assert threading.main_thread().name not in reranker.threads
    assert [type(event) for event in rerank_events(seen)] == [ReRankStartEvent, ReRankEndEvent]
    assert found == component.postprocess_nodes(nodes, query_str=QUESTION)
    assert len(asyncio.run(component.arerank(nodes, QUESTION, top_n=1))) == 1


def test_eight_threads_give_the_scores_of_one() -> None:
    component = MMRHRerank(reranker=real())
    nodes = [NodeWithScore(node=ImageNode(image=base64.b64encode(png(seed)).decode())) for seed in range(3)]

    def ask(number: int) -> list[tuple[str, float | None]]:
        return [(it.node_id, it.score) for it in component.rerank(nodes, f"{QUESTION} {number}")]

    alone = [ask(number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == alone


# Serialisation and sharing


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny().model.save_pretrained(folder)
    tiny().tokenizer.save_pretrained(folder)
    tiny().image_processor.save_pretrained(folder)
    return folder


def test_round_trips(saved: Path) -> None:
    component = MMRHRerank(
        model=saved, heads=HeadSet.parse(["1-2", "0-3"]), top_n=3, score_threshold=0.1, on_error="last", page_base=0,
        dtype="float32", allowed_root=saved, with_regions=True,
    )  # fmt: skip
    plain = component.to_dict()
    assert plain["class_name"] == "MMRHRerank"
    assert plain["heads"] == ["1-2", "0-3"]
    others = [
        MMRHRerank.from_dict(plain),
        MMRHRerank.from_json(component.to_json()),
        pickle.loads(pickle.dumps(component)),
    ]
    for other in others:
        assert other.to_dict() == plain
        assert list(other.heads) == list(component.heads)
        assert other._held.reranker is None


def test_a_pickle_of_a_used_component_loads_nothing_and_scores_alike(saved: Path) -> None:
    component = MMRHRerank(model=saved, heads="all")
    nodes = [NodeWithScore(node=ImageNode(image=base64.b64encode(png(seed)).decode())) for seed in range(2)]
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


def test_one_model_for_many_components(saved: Path) -> None:
    release_shared_models()
    components = [MMRHRerank(model=saved, heads="all", top_n=number) for number in (1, 2)]
    components.append(MMRHRerank(model=str(saved), heads=["0-1"]))
    assert len({id(component.reranker.backbone.model) for component in components}) == 1
    release_shared_models()


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="top_k"):
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
