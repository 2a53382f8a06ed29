"""The node postprocessor."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from llama_index.core.bridge.pydantic import ConfigDict, Field
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle, TextNode
from mmrh_retriever import Page
from mmrh_retriever.adapters import (
    ERROR_KEY,
    NEIGHBOUR_KEY,
    REGIONS_KEY,
    RETRIEVAL_SCORE_KEY,
    AdapterSettings,
    PageClues,
    RankedItem,
    check_top_n,
    clues_from_metadata,
)

dispatcher = get_dispatcher(__name__)


class MMRHRerank(AdapterSettings, BaseNodePostprocessor):
    """Reranks nodes by what a vision-language model's retrieval heads attend to on their pages.

    A node's page is its image (in memory, by path, or by web address if ``allow_urls`` is set), the page of the PDF
    that its metadata names, or its text. Nodes are copied, never changed. The model is loaded at first use, once
    per process.

        reranker = MMRHRerank(model="Qwen/Qwen3-VL-8B-Instruct", top_n=5)  # without model=: a small one, for scans
        engine = index.as_query_engine(similarity_top_k=40, node_postprocessors=[reranker])

    All other settings are those of :class:`mmrh_retriever.adapters.AdapterSettings`. ``reranker=`` takes a
    :class:`mmrh_retriever.Reranker` that is loaded already.
    """

    model_config = ConfigDict(extra="forbid")

    top_n: int | None = Field(None, ge=1, description="How many nodes to return; all if None.")
    page_base: Literal[0, 1] = Field(
        1, description="The number that the first page has in metadata['page']: 1 for LlamaIndex's readers."
    )

    @classmethod
    def class_name(cls) -> str:
        """The name under which the component is written down."""
        return "MMRHRerank"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """The settings as plain data, for ``from_dict``.

        Raises:
            SettingsError: made from a reranker whose model has neither a hub id nor a folder.
        """
        self.check_portable()
        return super().to_dict(**kwargs)

    def rerank(
        self,
        nodes: Sequence[NodeWithScore],
        query: QueryBundle | str | None,
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
    ) -> list[NodeWithScore]:
        """Rerank with another ``top_n`` or ``score_threshold`` than the component's own.

        The question may be missing only where there are no nodes.

        Returns:
            Copies, best first, with scores of this question; equals keep their order.

        Raises:
            QuestionError: no question, or one without text.
            PageError, ContextOverflowError: a node that can't be read or is too long (``on_error="raise"``).
            SettingsError: ``top_n`` below 1.
        """
        check_top_n(top_n)
        nodes = list(nodes)  # the caller's list may change meanwhile
        top_n = self.top_n if top_n is None else top_n
        bundle = QueryBundle(query) if isinstance(query, str) else query
        shown = len(nodes) if top_n is None else top_n
        dispatcher.event(ReRankStartEvent(query=bundle, nodes=list(nodes), top_n=shown, model_name=self.model_label))
        question = "" if bundle is None else bundle.query_str
        payload = {
            EventPayload.NODES: list(nodes),
            EventPayload.MODEL_NAME: self.model_label,
            EventPayload.QUERY_STR: question,
            EventPayload.TOP_K: shown,
        }
        found: list[NodeWithScore] = []
        try:
            with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
                if nodes:
                    ranked = self.rank_items(
                        question,
                        nodes,
                        self.clues,
                        retrieval_score_of=lambda scored: scored.score,
                        top_n=top_n,
                        score_threshold=score_threshold,
                    )
                    found = [self._scored_copy(nodes[item.position], item) for item in ranked]
                event.on_end(payload={EventPayload.NODES: found})
        except Exception as error:
            dispatcher.event(ExceptionEvent(exception=error))
            raise
        finally:
            dispatcher.event(ReRankEndEvent(nodes=found))
        return found

    async def arerank(
        self, nodes: Sequence[NodeWithScore], query: QueryBundle | str | None, **options: Any
    ) -> list[NodeWithScore]:
        """:meth:`rerank` in a thread, with its options; the event loop goes on."""
        return await asyncio.to_thread(self.rerank, nodes, query, **options)

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return self.rerank(nodes, query_bundle)

    @dispatcher.span  # LlamaIndex adds it to the method above, which is abstract, by itself
    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return await self.arerank(nodes, query_bundle)

    def clues(self, scored: NodeWithScore) -> PageClues:
        """What a node says of its page.

        Raises:
            PageError: a page number in the metadata that is not a number.
        """
        node, text = scored.node, scored.node.get_content(metadata_mode=MetadataMode.NONE)
        clues = clues_from_metadata(
            node.metadata, text=text, doc_id=node.node_id, page_base=self.page_base, page_key=self.page_key
        )
        image, path, url = _own_picture(node)
        return replace(
            clues,
            image=image if image or path else clues.image,
            image_path=path or clues.image_path,
            image_url=url or clues.image_url,
        )

    def _scored_copy(self, scored: NodeWithScore, item: RankedItem) -> NodeWithScore:
        if item.page is not None:
            scored = NodeWithScore(node=self._page_node(item.page))
        notes: dict[str, Any] = {}
        if self.keep_retrieval_score:
            notes[RETRIEVAL_SCORE_KEY] = scored.score
        if self.with_regions:
            notes[REGIONS_KEY] = item.region_records()
        if item.neighbour_of is not None:
            notes[NEIGHBOUR_KEY] = item.neighbour_of
        if item.error is not None:
            notes[ERROR_KEY] = str(item.error)
        old = scored.node
        stale = {RETRIEVAL_SCORE_KEY, REGIONS_KEY, NEIGHBOUR_KEY, ERROR_KEY}
        metadata = {key: value for key, value in old.metadata.items() if key not in stale} | notes
        update: dict[str, Any] = {"metadata": metadata}
        for name in ("excluded_llm_metadata_keys", "excluded_embed_metadata_keys"):
            excluded = getattr(old, name)
            update[name] = [*excluded, *(key for key in notes if key not in excluded)]
        return NodeWithScore(node=old.model_copy(update=update), score=item.score)

    def _page_node(self, page: Page) -> TextNode:
        """A node of a PDF's page, for a neighbour that no node holds; its metadata lead to the page again."""
        source = str(page.metadata.get("path", page.metadata.get("url")))
        metadata = {
            "file_path": source,
            self.page_key or "page": page.index + self.page_base,
            "total_pages": page.metadata["total_pages"],
        }
        return TextNode(id_=f"{source}#{page.index}", text=page.text or "", metadata=metadata)


def _own_picture(node: BaseNode) -> tuple[bytes | str | None, str | None, str | None]:
    """Image data (bytes, or text in base64), path and address in a node's own fields."""
    resource = getattr(node, "image_resource", None)
    image = getattr(node, "image", None)
    path = getattr(node, "image_path", None)
    url = getattr(node, "image_url", None)
    if resource is not None:
        if not image and resource.data:
            image = resource.data.decode("ascii", "replace")  # MediaResource holds base64 as bytes
        path = path or resource.path
        url = url or resource.url
    return image or None, str(path) if path else None, str(url) if url else None
