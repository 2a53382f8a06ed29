"""Answers of the endpoints that rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field

from mmrh_retriever.ranking.grid_regions import with_some_regions
from mmrh_retriever.ranking.region_scores import DEFAULT_AGGREGATE
from mmrh_retriever.ranking.regions import ranked_regions
from mmrh_retriever.types import Page, ScoredPage, ScoredRegion


class Answer(BaseModel):
    """An answer or a part of one."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RegionAnswer(Answer):
    """A region of a page; ``kind`` is ``cell`` for cells of a grid, where the page's layout is unknown."""

    box: tuple[float, float, float, float] = Field(
        description="x0, y0, x1, y1 from the upper left corner, in the page's units: points of a PDF, else pixels."
    )
    box_fraction: tuple[float, float, float, float] = Field(description="The same as fractions of the page, 0 to 1.")
    kind: str
    score: float = Field(description="Attention mass on the region.")
    text: str | None = None

    @classmethod
    def of(cls, found: ScoredRegion) -> RegionAnswer:
        """A ranked region."""
        width, height = found.page.size or (1.0, 1.0)
        x0, y0, x1, y1 = found.box
        fraction = (_within(x0 / width), _within(y0 / height), _within(x1 / width), _within(y1 / height))
        return cls(box=found.box, box_fraction=fraction, kind=found.kind, score=found.score, text=found.region.text)


class DocumentAnswer(Answer):
    """A document's text, empty where it has none; of a PDF's page its text layer."""

    text: str


class RerankResult(Answer):
    """A document's index in the request, and its score.

    ``relevance_score`` is not normalised. It compares documents of one request. Where the model's scores are hybrid it
    is the document's share among them (they sum to 1); else it is attention mass, which may be below 0.
    ``probability`` is that of the document being evidence for the query, where a calibration holds.
    """

    index: int
    relevance_score: float
    document: DocumentAnswer | None = None
    regions: list[RegionAnswer] | None = None
    probability: float | None = None


class ApiVersion(Answer):
    """The version of Cohere's interface that an answer follows."""

    version: str


class BilledUnits(Answer):
    """What Cohere's clients find under this name: one unit of search."""

    search_units: int = 1


class Meta(Answer):
    """What Cohere's clients expect beside the results."""

    api_version: ApiVersion
    billed_units: BilledUnits = BilledUnits()


class Usage(Answer):
    """How many documents were ranked for how many questions."""

    documents: int
    questions: int


class RerankAnswer(Answer):
    """A ranking, best first, as clients of Cohere, Jina and vLLM read it."""

    id: str
    model: str
    results: list[RerankResult]
    usage: Usage
    meta: Meta


class TeiResult(Answer):
    """A text's index in the request and its score, as clients of Text Embeddings Inference read it."""

    index: int
    score: float
    text: str | None = None


class PageResult(Answer):
    """A page with its rank (from 1), its file, and its number there (from 1).

    ``score`` is not normalised; it compares pages of one ranking. Where the model's scores are hybrid it is the page's
    share among all pages (they sum to 1), joined from ``attention_score``, the attention mass, and ``text_score``, BM25
    over the text layer; else it is the attention mass. ``probability`` is that of the page being evidence for the
    question, where a calibration holds.
    """

    rank: int
    file: str
    name: str
    page: int
    label: str | None = Field(None, description="The page's printed label.")
    score: float
    attention_score: float | None = None
    text_score: float | None = None
    probability: float | None = None
    page_size: tuple[float, float] | None = Field(None, description="Width and height in the units of the boxes.")
    regions: list[RegionAnswer] | None = None


class PageRanking(Answer):
    """The pages for one question, best first."""

    query: str
    results: list[PageResult]


class RankAnswer(Answer):
    """One ranking per question, in their order."""

    id: str
    model: str
    rankings: list[PageRanking]
    usage: Usage


def best_regions(scored: ScoredPage, page: Page, count: int) -> list[RegionAnswer]:
    """The best regions of a page that was ranked with its tokens; ``page`` is the same with its layout.

    A page without a layout has cells of a grid, one that was read as text has none.
    """
    if scored.token_scores is None:
        return []
    shown = replace(scored, page=with_some_regions(page))
    return [RegionAnswer.of(found) for found in ranked_regions([shown], aggregate=DEFAULT_AGGREGATE, top_n=count)]


def text_of(page: Page) -> DocumentAnswer:
    """What a result says of its document."""
    return DocumentAnswer(text=page.text or "")


def _within(share: float) -> float:
    return min(1.0, max(0.0, share))


def best(ranking: Sequence[ScoredPage], top_n: int | None) -> Sequence[ScoredPage]:
    """The first results of a ranking, all of them for ``None``."""
    return ranking if top_n is None else ranking[:top_n]
