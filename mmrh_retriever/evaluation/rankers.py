"""What is evaluated, in one form: a model's heads (selected, or all), BM25, embeddings, and chance.

A :class:`PageRanker` scores pages for questions. At layout level a :class:`RegionRanker` scores the pages' boxes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from mmrh_retriever.bm25 import bm25_scores as bm25_scores  # documented as a name of this module, too
from mmrh_retriever.errors import DataError
from mmrh_retriever.evaluation.embeddings import EmbeddingScorer as EmbeddingScorer
from mmrh_retriever.evaluation.trained_rerankers import RankerInput, TrainedRanker, load_trained
from mmrh_retriever.ranking.region_scores import DEFAULT_AGGREGATE, Aggregate
from mmrh_retriever.ranking.regions import RegionMethod
from mmrh_retriever.ranking.reranker import Reranker
from mmrh_retriever.settings import DEFAULT_TEXT_WEIGHT, RerankSettings
from mmrh_retriever.types import Page, Region

Scores = npt.NDArray[np.float64]
"""``(questions, candidates)``, higher is better, ``NaN`` for a candidate that was not ranked."""
TextScorer = Callable[[Sequence[str], Sequence[str]], Scores]
"""Questions and candidates' texts to scores. A candidate without text comes as an empty text."""
Kind = Literal["heads", "bm25", "random", "embedding", "cross-encoder", "sentence-transformer"]


class PageRanker(Protocol):
    """Anything that scores pages for questions."""

    def rank(self, questions: Sequence[str], pages: Sequence[Page]) -> Scores:
        """Scores ``(questions, pages)``, higher is better; equals are ties, ``NaN`` was not ranked."""
        ...  # pragma: no cover


class RegionRanker(Protocol):
    """Anything that scores the layout boxes of pages for questions."""

    def rank_regions(self, questions: Sequence[str], pages: Sequence[Page]) -> Scores:
        """Scores ``(questions, regions)``; the pages' ``regions`` one page after the other."""
        ...  # pragma: no cover


@dataclass(frozen=True)
class HeadRanker:
    """A model's heads: the reranker of this package. Pages are read once for all questions.

    ``aggregate`` and ``method`` say how boxes are scored, as for :meth:`~mmrh_retriever.Reranker.rank_regions`.
    """

    reranker: Reranker
    _: KW_ONLY
    aggregate: Aggregate = DEFAULT_AGGREGATE
    method: RegionMethod = "page"

    def rank(self, questions: Sequence[str], pages: Sequence[Page]) -> Scores:
        """Each page's score: calibrated attention mass (Li et al. 2026, arXiv 2605.27243), or a hybrid of it."""
        scores = np.full((len(questions), len(pages)), np.nan)
        for row, ranking in zip(scores, self.reranker.rank_many(questions, pages), strict=True):
            for scored in ranking:
                row[scored.position] = scored.score
        return scores

    def rank_regions(self, questions: Sequence[str], pages: Sequence[Page]) -> Scores:
        """Calibrated attention on the pages' boxes."""
        indices = {id(region): index for index, region in enumerate(listed_regions(pages))}
        scores = np.full((len(questions), len(indices)), np.nan)
        found = self.reranker.rank_regions_many(questions, pages, aggregate=self.aggregate, method=self.method)
        for row, ranking in zip(scores, found, strict=True):
            for scored in ranking:
                row[indices[id(scored.region)]] = scored.score
        return scores


@dataclass(frozen=True)
class TextRanker:
    """Ranks by text alone: the text layer of pages, the text of boxes."""

    scorer: TextScorer

    def rank(self, questions: Sequence[str], pages: Sequence[Page]) -> Scores:
        """Scores of the pages' text layers; a page without one ties with all others that have nothing to match."""
        return self.scorer(questions, [page.text or "" for page in pages])

    def rank_regions(self, questions: Sequence[str], pages: Sequence[Page]) -> Scores:
        """Scores of the boxes' texts."""
        return self.scorer(questions, [region.text or "" for region in listed_regions(pages)])


@dataclass(frozen=True)
class RandomRanker:
    """Chance. For one seed, a question over as many candidates always gets the same scores."""

    seed: int = 0

    def rank(self, questions: Sequence[str], pages: Sequence[Page]) -> Scores:
        """Uniform numbers."""
        return self._numbers(questions, len(pages))

    def rank_regions(self, questions: Sequence[str], pages: Sequence[Page]) -> Scores:
        """Uniform numbers."""
        return self._numbers(questions, len(listed_regions(pages)))

    def _numbers(self, questions: Sequence[str], count: int) -> Scores:
        rows = [np.random.default_rng([self.seed, zlib.crc32(item.encode())]).random(count) for item in questions]
        return np.array(rows, dtype=np.float64).reshape(len(questions), count)


def listed_regions(pages: Sequence[Page]) -> list[Region]:
    """The pages' boxes one page after the other, in the order of region scores."""
    return [region for page in pages for region in page.regions]


@dataclass(frozen=True, init=False)
class RankerSpec:
    """How to make a ranker: small, compared by value, and fit to be sent to another machine.

    ``settings`` are, for ``heads``, the model and how it ranks, and for ``embedding`` its ``model`` and ``device``;
    ``changes`` are fields of theirs in place of what they hold. ``heads`` is as for :class:`~mmrh_retriever.Reranker`,
    ``aggregate`` and ``region_method`` are as for :class:`HeadRanker`. ``seed`` is that of ``random``. A
    ``cross-encoder`` or ``sentence-transformer`` has a ``model``, ``device`` and ``dtype``, ``reads`` text or images,
    and runs the Python code that it brings with ``own_code`` only
    (:mod:`~mmrh_retriever.evaluation.trained_rerankers`).

    Raises:
        DataError: an unknown kind.
        SettingsError: a setting that is out of its range.
    """

    kind: Kind
    heads: str
    settings: RerankSettings
    aggregate: Aggregate
    region_method: RegionMethod
    seed: int
    reads: RankerInput
    own_code: bool

    def __init__(
        self,
        kind: Kind,
        *,
        heads: str = "published",
        settings: RerankSettings | None = None,
        aggregate: Aggregate = DEFAULT_AGGREGATE,
        region_method: RegionMethod = "page",
        seed: int = 0,
        reads: RankerInput = "text",
        own_code: bool = False,
        **changes: Any,
    ) -> None:
        if kind not in get_args(Kind):
            raise DataError(f"No ranker is called {kind!r}. Expected one of {', '.join(get_args(Kind))}.")
        given = RerankSettings.of(settings, changes)
        values = (kind, str(heads), given, aggregate, region_method, seed, reads, own_code)
        vars(self).update(zip(self.__dataclass_fields__, values, strict=True))  # the object itself is frozen

    @property
    def needs_model(self) -> bool:
        """Whether a vision-language model has to be loaded."""
        return self.kind == "heads"


AnyRanker = RankerSpec | PageRanker | RegionRanker
Rankers = Mapping[str, PageRanker | RegionRanker]


def build_rankers(rankers: Mapping[str, AnyRanker]) -> dict[str, PageRanker | RegionRanker]:
    """Rankers by name, those that are described made. Head rankers with equal settings share one loaded model."""
    loaded: list[tuple[RerankSettings, Reranker]] = []
    return {name: _build(spec, loaded) for name, spec in rankers.items()}


def _build(spec: AnyRanker, loaded: list[tuple[RerankSettings, Reranker]]) -> PageRanker | RegionRanker:
    if not isinstance(spec, RankerSpec):
        return spec
    if spec.kind == "bm25":
        return TextRanker(bm25_scores)
    if spec.kind == "random":
        return RandomRanker(spec.seed)
    if spec.kind == "embedding":
        return TextRanker(EmbeddingScorer(spec.settings.model, device=spec.settings.device))
    if spec.kind != "heads":
        given = spec.settings
        model = load_trained(spec.kind, given.model, device=given.device, dtype=given.dtype, own_code=spec.own_code)
        return TrainedRanker(spec.kind, model, spec.reads)
    alike = RerankSettings.of(spec.settings, {"hybrid": "auto", "text_weight": DEFAULT_TEXT_WEIGHT})
    reranker = next((reranker for settings, reranker in loaded if settings == alike), None)
    if reranker is None:
        reranker = Reranker.from_pretrained(heads=spec.heads, settings=spec.settings)
        loaded.append((alike, reranker))
    else:
        reranker = reranker.with_heads(spec.heads).with_hybrid(spec.settings.hybrid, spec.settings.text_weight)
    return HeadRanker(reranker, aggregate=spec.aggregate, method=spec.region_method)
