"""Pages beside a hit: nodes among the candidates, else nodes made from the PDF."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from llama_index.core.schema import ImageNode, MetadataMode, NodeWithScore, TextNode
from tests.ranking_stub import StubReranker, png

from llama_index.postprocessor.mmrh_rerank import MMRHRerank
from tests.nodes import QUESTION


def page_node(pdf: Path, number: int, **metadata: object) -> NodeWithScore:
    node = TextNode(text=f"words {number}", metadata={"file_path": str(pdf), "page": number, **metadata})
    return NodeWithScore(node=node, score=0.4)


def test_candidates_come_along_marked_and_beyond_top_n(reranker: StubReranker, pdf: Path) -> None:
    nodes = [page_node(pdf, number, mmrh_neighbour_of=9) for number in (3, 2, 1)]  # page 1 is the whitest
    found = MMRHRerank(reranker=reranker, top_n=1, neighbours="next").postprocess_nodes(nodes, query_str=QUESTION)
    assert [it.node.node_id for it in found] == [nodes[2].node.node_id, nodes[1].node.node_id]
    assert [it.node.metadata.get("mmrh_neighbour_of") for it in found] == [None, 1]
    assert found[0].score > found[1].score > 0
    assert "mmrh_neighbour_of" not in found[1].node.get_content(metadata_mode=MetadataMode.LLM)
    assert nodes[1].node.metadata["mmrh_neighbour_of"] == 9


def test_a_node_is_made_from_the_pdf_and_leads_to_its_page_again(reranker: StubReranker, pdf: Path) -> None:
    component = MMRHRerank(reranker=reranker, neighbours="next")
    picture = ImageNode(image=base64.b64encode(png()).decode(), metadata={"file_path": str(pdf), "page": 2})
    for node in (page_node(pdf, 2), NodeWithScore(node=picture)):
        hit, beside = component.postprocess_nodes([node], query_str=QUESTION)
        assert (hit.node.node_id, beside.score) == (node.node.node_id, None)
        assert beside.node.get_content().strip() == "sheet 2"
        assert beside.node.metadata == {
            "file_path": str(pdf), "page": 3, "total_pages": 3, "retrieval_score": None, "mmrh_neighbour_of": 1,
        }  # fmt: skip
        (again,) = component.postprocess_nodes([beside], query_str=QUESTION)
        assert again.score is not None
        assert reranker.calls[-1][0].index == 2
    keyed = MMRHRerank(reranker=reranker, neighbours="next", page_key="sheet", page_base=0)
    node = TextNode(text="words", metadata={"file_path": str(pdf), "sheet": 0})
    _, beside = keyed.postprocess_nodes([NodeWithScore(node=node)], query_str=QUESTION)
    assert beside.node.metadata["sheet"] == 1


def test_it_is_written_down(reranker: StubReranker) -> None:
    component = MMRHRerank(model="some/model", neighbours="both")
    assert MMRHRerank.from_dict(json.loads(json.dumps(component.to_dict()))).neighbours == "both"
    assert MMRHRerank(reranker=reranker).neighbours is None
