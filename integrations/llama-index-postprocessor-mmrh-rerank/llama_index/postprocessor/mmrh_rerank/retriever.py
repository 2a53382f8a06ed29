"""The retriever over files of its own."""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from mmrh_retriever import Library, SettingsError
from mmrh_retriever.adapters import ERROR_KEY, NEIGHBOUR_KEY, REGIONS_KEY, FilePage, FileSettings, check_top_n


class MMRHRetriever(BaseRetriever):
    """Retrieves pages of files by what a vision-language model's retrieval heads attend to on them.

    Files are PDF and image files, or folders of them. They are a :class:`mmrh_retriever.Library`: looked at again at
    each question. ``first_stage="all"`` ranks all their pages, which run through the model once; ``"bm25"``,
    ``"embedding"`` and ``"hybrid"`` pick ``candidates`` pages by their text for each question.

        retriever = MMRHRetriever(files="reports/", first_stage="hybrid", similarity_top_k=3)
        retriever.retrieve("How did revenue change?")

    A node has the page's text, and in its metadata ``file_path``, ``page`` (from 1) and what is known of
    ``page_label``, ``total_pages`` and ``title``, as :class:`MMRHRerank` reads them.

    Args:
        files: PDF and image files, or folders of them.
        similarity_top_k: how many nodes to return.
        callback_manager: LlamaIndex's.
        settings: those of :class:`mmrh_retriever.adapters.FileSettings`: ``first_stage``, ``candidates``, ``model``,
            ``store``, ``on_error``, ``score_threshold``, ``with_regions`` and so on; ``reranker=`` takes a
            :class:`mmrh_retriever.Reranker` that is loaded already.

    Raises:
        SettingsError: no files, or a setting that is unknown, of the wrong type or out of its range.
    """

    def __init__(
        self, files: Any, *, similarity_top_k: int = 4, callback_manager: CallbackManager | None = None, **settings: Any
    ) -> None:
        check_top_n(similarity_top_k, "similarity_top_k")
        self.similarity_top_k = similarity_top_k
        self.settings = FileSettings(files=files, **settings)
        if not self.settings.files:
            raise SettingsError("A retriever needs files=: PDF or image files, or folders of them; got none.")
        super().__init__(callback_manager=callback_manager)

    @property
    def library(self) -> Library:
        """The files as a library; the model is loaded now."""
        return self.settings.library

    def warm_up(self) -> None:
        """Load the model and read the files; with ``first_stage="all"`` their pages run through the model, too."""
        self.settings.warm_up()

    async def awarm_up(self) -> None:
        """:meth:`warm_up` in a thread; the event loop goes on."""
        await self.settings.awarm_up()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = self.settings.rank_files(query_bundle.query_str, top_n=self.similarity_top_k)
        return [self._node(of_page) for of_page in found]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)

    def _node(self, found: FilePage) -> NodeWithScore:
        metadata: dict[str, Any] = {"file_path": found.path}
        own: dict[str, Any] = {"id_": found.path}
        if found.page is not None:
            metadata |= {"page": found.page.number, **found.known}
            own = {"id_": f"{found.path}#{found.page.index}", "text": found.page.text or ""}
        notes: dict[str, Any] = {}
        if self.settings.with_regions:
            notes[REGIONS_KEY] = found.item.region_records()
        if found.item.neighbour_of is not None:
            notes[NEIGHBOUR_KEY] = found.item.neighbour_of
        if found.item.error is not None:
            notes[ERROR_KEY] = str(found.item.error)
        hidden = {"excluded_llm_metadata_keys": [*notes], "excluded_embed_metadata_keys": [*notes]}
        node = TextNode(metadata=metadata | notes, **own, **hidden)
        return NodeWithScore(node=node, score=found.item.score)
