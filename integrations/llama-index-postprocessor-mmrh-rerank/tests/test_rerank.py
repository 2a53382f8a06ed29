"""The postprocessor: nodes of every kind, what comes back, and which questions are refused."""

from __future__ import annotations

import base64
import copy
import json
from pathlib import Path
from typing import Any

import pytest
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
from mmrh_retriever import PageError, QuestionError, read_pdf
from tests.ranking_stub import StubReranker, png, real

from llama_index.postprocessor.mmrh_rerank import MMRHRerank
from tests import factories
from tests.nodes import QUESTION, image_nodes, node

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


def test_a_page_that_is_not_found(reranker: StubReranker) -> None:
    given = node(0.5, metadata={"file_name": "elsewhere.pdf", "page_number": 2})  # LlamaParse's form
    with pytest.warns(UserWarning, match="elsewhere") as caught:
        (found,) = MMRHRerank(reranker=reranker).postprocess_nodes([given], query_str=QUESTION)
    assert found.score == 0.5
    assert caught[0].filename == __file__
    with pytest.raises(PageError, match="elsewhere"):
        MMRHRerank(reranker=reranker, on_missing_page="raise").postprocess_nodes([given], query_str=QUESTION)
    assert MMRHRerank(reranker=reranker, on_missing_page="drop").postprocess_nodes([given], query_str=QUESTION) == []


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
    nodes = [node(0.25, metadata={"title": "a", "nested": {"a": 1}}), node(0.5)]
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
    nodes = image_nodes(40)
    engine = type(reranker.engine())
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
    nodes = image_nodes(3)
    first = [it.score for it in component.postprocess_nodes(nodes, query_str=QUESTION)]
    component.postprocess_nodes(nodes[:1], query_str="Something else?")
    assert [it.score for it in component.postprocess_nodes(nodes, query_str=QUESTION)] == first


# Questions


def test_questions_without_text_are_refused_clearly(reranker: StubReranker) -> None:
    component = MMRHRerank(reranker=reranker)
    for bundle in (QueryBundle(query_str="", image_path="query.png"), QueryBundle(query_str=" "), None):
        with pytest.raises(QuestionError, match=r"empty.*image alone"):
            component.postprocess_nodes([node(0.5)], query_bundle=bundle)


def test_the_callers_list_may_change_meanwhile(reranker: StubReranker, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [NodeWithScore(node=TextNode(text=f"score={score}")) for score in (0.2, 0.7)]
    ranked = reranker.rank

    def rank(*given: Any, **options: Any) -> Any:
        nodes.clear()
        return ranked(*given, **options)

    monkeypatch.setattr(reranker, "rank", rank)
    found = MMRHRerank(reranker=reranker).postprocess_nodes(nodes, query_str=QUESTION)
    assert [scored.score for scored in found] == [0.7, 0.2]


def test_a_resource_that_is_no_text_costs_itself_alone(reranker: StubReranker) -> None:
    bad = Node(image_resource=MediaResource(data=b"AAAA"))
    bad.image_resource.data = b"\xff\xfe"
    nodes = [NodeWithScore(node=bad), NodeWithScore(node=TextNode(text="score=0.7"))]
    found = MMRHRerank(reranker=reranker, on_error="drop").postprocess_nodes(nodes, query_str=QUESTION)
    assert [scored.score for scored in found] == [0.7]


def test_scores_are_blended_with_those_of_the_retriever(reranker: StubReranker) -> None:
    nodes = [node(0.3), node(0.6), node(0.5)]
    for given, score in zip(nodes, (0.9, 0.1, 0.8), strict=True):
        given.score = score
    blend = MMRHRerank(reranker=reranker, fuse="blend", retrieval_weight=1.0)
    found = blend.postprocess_nodes(nodes, query_str=QUESTION)
    assert [it.node.node_id for it in found] == [nodes[index].node.node_id for index in (0, 2, 1)]
    assert [it.node.metadata["retrieval_score"] for it in found] == [0.9, 0.8, 0.1]
    assert sum(it.score for it in found) == pytest.approx(1)
    plain = MMRHRerank(reranker=reranker).postprocess_nodes(nodes, query_str=QUESTION)
    assert [it.score for it in plain] == pytest.approx([0.6, 0.5, 0.3])
