"""The ranker. Its annotations are not postponed: older Haystack reads them as they stand."""

import asyncio
from pathlib import Path
from typing import Any, Literal, Self

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.utils import ComponentDevice
from mmrh_retriever import Reranker
from mmrh_retriever.adapters import AdapterSettings, check_top_n
from pydantic import Field

from haystack_integrations.components.rankers.mmrh.documents import clues_of, distinct, scored_copy


class RankerSettings(AdapterSettings):
    """Settings of :class:`MMRHRanker`, checked."""

    top_k: int | None = Field(None, ge=1, description="How many documents to return; all if None.")
    page_base: Literal[0, 1] = Field(
        1, description="The number that the first page has in meta['page']: 1, as in Haystack's meta['page_number']."
    )


@component
class MMRHRanker:
    """Ranks documents by what a vision-language model's retrieval heads attend to on their pages.

    A document's page is its ``blob`` (an image, or a PDF with ``meta["page_number"]``), the image or the page of a PDF
    that its metadata names, or its text. Documents are copied, never changed. Of several documents with one id, one is
    ranked. The model is loaded by :meth:`warm_up` or at first use, once per process.

        ranker = MMRHRanker("Qwen/Qwen3-VL-8B-Instruct", top_k=5)  # without a name: a small model, for scans
        pipeline.add_component("ranker", ranker)
        pipeline.connect("retriever.documents", "ranker.documents")

    Args:
        model: hub id or folder; the model that ships with mmrh-retriever if ``None``.
        top_k: how many documents to return; all if ``None``.
        reranker: a :class:`mmrh_retriever.Reranker` that is loaded already.
        settings: those of :class:`mmrh_retriever.adapters.AdapterSettings`; ``device`` may be a ``ComponentDevice``.

    Raises:
        SettingsError: a setting that is unknown, of the wrong type or out of its range.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        top_k: int | None = None,
        reranker: Reranker | None = None,
        **settings: Any,
    ) -> None:
        if isinstance(device := settings.get("device"), ComponentDevice):
            settings["device"] = device.to_torch_str()
        self.settings = RankerSettings(reranker=reranker, model=model, top_k=top_k, **settings)

    def warm_up(self) -> None:
        """Load the model now. Errors are those of :meth:`mmrh_retriever.Reranker.from_pretrained`."""
        self.settings.warm_up()

    async def warm_up_async(self) -> None:
        """:meth:`warm_up` in a thread; the event loop goes on."""
        await self.settings.awarm_up()

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data, for :meth:`from_dict` and a pipeline's YAML.

        Raises:
            SettingsError: made from a reranker whose model has neither a hub id nor a folder.
        """
        self.settings.check_portable()
        return default_to_dict(self, **self.settings.model_dump(mode="json"))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """A ranker with the settings that :meth:`to_dict` wrote down; nothing is loaded."""
        return default_from_dict(cls, data)

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, documents: list[Document], top_k: int | None = None, score_threshold: float | None = None
    ) -> dict[str, list[Document]]:
        """Rank documents for a question; ``top_k`` and ``score_threshold`` count instead of the settings.

        Returns:
            ``documents``: copies, best first, with scores of this question; equals keep their order.

        Raises:
            QuestionError: an empty question.
            PageError, ContextOverflowError: a document that can't be read or is too long (``on_error="raise"``).
            SettingsError: ``top_k`` below 1.
        """
        check_top_n(top_k, "top_k")
        candidates, settings = distinct(documents), self.settings
        if not candidates:
            return {"documents": []}
        ranked = settings.rank_items(
            query,
            candidates,
            lambda document: clues_of(document, settings),
            retrieval_score_of=lambda document: document.score,
            top_n=settings.top_k if top_k is None else top_k,
            score_threshold=score_threshold,
        )
        return {"documents": [scored_copy(candidates[item.position], item, settings) for item in ranked]}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None, score_threshold: float | None = None
    ) -> dict[str, list[Document]]:
        """:meth:`run` in a thread; the event loop goes on."""
        return await asyncio.to_thread(self.run, query, documents, top_k, score_threshold)
