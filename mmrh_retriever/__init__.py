"""Rerank page images with the multimodal retrieval heads of a vision-language model.

    from mmrh_retriever import Reranker, read_pdf

    pages = read_pdf("report.pdf")
    top = Reranker.from_pretrained().rank("How did revenue change?", pages, top_n=5)

The names below are the public surface, and with them what these modules show: ``explain`` (heat maps, and the report in
``explain.html_report``), ``adapters`` and ``page_sources`` (what adapters build on), ``bm25``, ``evaluation``,
``metrics``, ``mmdocir`` and ``baselines``, ``detection``, ``causal``, ``probes`` and ``head_analysis``. Everything else
may change. Names are imported when they are first used. ``docs/architecture.md`` is a tour of the code.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmrh_retriever.encoding.page_store import PageStore
    from mmrh_retriever.errors import (
        AttentionCaptureError,
        ContextOverflowError,
        DataError,
        HeadSetError,
        MMRHError,
        PageError,
        QuestionError,
        SettingsError,
        UnsupportedModelError,
    )
    from mmrh_retriever.heads.sets import HeadId, HeadScores, HeadScoresTable, HeadSet
    from mmrh_retriever.library.library import Library, LibraryAnswer
    from mmrh_retriever.library.settings import LibrarySettings
    from mmrh_retriever.pdf.reader import iter_pdf, read_pdf
    from mmrh_retriever.ranking.encoded_pages import EncodedPages
    from mmrh_retriever.ranking.reranker import Reranker
    from mmrh_retriever.ranking.shared_models import release_shared_models, shared_reranker
    from mmrh_retriever.settings import PromptOptions, RerankSettings
    from mmrh_retriever.types import Page, PatchGrid, Region, ScoredPage, ScoredRegion, TokenSpan

__version__ = "0.1.0"

__all__ = [
    "AttentionCaptureError",
    "ContextOverflowError",
    "DataError",
    "EncodedPages",
    "HeadId",
    "HeadScores",
    "HeadScoresTable",
    "HeadSet",
    "HeadSetError",
    "Library",
    "LibraryAnswer",
    "LibrarySettings",
    "MMRHError",
    "Page",
    "PageError",
    "PageStore",
    "PatchGrid",
    "PromptOptions",
    "QuestionError",
    "Region",
    "RerankSettings",
    "Reranker",
    "ScoredPage",
    "ScoredRegion",
    "SettingsError",
    "TokenSpan",
    "UnsupportedModelError",
    "iter_pdf",
    "read_pdf",
    "release_shared_models",
    "shared_reranker",
]

_HOMES = {
    "encoding.page_store": ("PageStore",),
    "errors": (
        "AttentionCaptureError",
        "ContextOverflowError",
        "DataError",
        "HeadSetError",
        "MMRHError",
        "PageError",
        "QuestionError",
        "SettingsError",
        "UnsupportedModelError",
    ),
    "heads.sets": ("HeadId", "HeadScores", "HeadScoresTable", "HeadSet"),
    "library.library": ("Library", "LibraryAnswer"),
    "library.settings": ("LibrarySettings",),
    "pdf.reader": ("iter_pdf", "read_pdf"),
    "ranking.encoded_pages": ("EncodedPages",),
    "ranking.reranker": ("Reranker",),
    "ranking.shared_models": ("release_shared_models", "shared_reranker"),
    "settings": ("PromptOptions", "RerankSettings"),
    "types": ("Page", "PatchGrid", "Region", "ScoredPage", "ScoredRegion", "TokenSpan"),
}
"""The names of ``__all__`` by the module that holds them."""
_MODULES = {name: module for module, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # type checkers see the imports above, and miss what is not there

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
