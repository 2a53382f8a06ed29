"""Ranking documents that are not pages yet: pages found, unreadable ones set apart, the best regions added."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import Field

from mmrh_retriever.adapters.clues import PageClues
from mmrh_retriever.adapters.neighbours import page_beside, page_id
from mmrh_retriever.adapters.notices import warn_once
from mmrh_retriever.adapters.page_sources import PageSource
from mmrh_retriever.adapters.settings import DocumentSettings
from mmrh_retriever.adapters.telemetry import ranking_span
from mmrh_retriever.errors import MMRHError, PageError, QuestionError, SettingsError
from mmrh_retriever.files import Finite
from mmrh_retriever.model.loading import BUNDLED_PURPOSE, is_bundled
from mmrh_retriever.ranking.calibration import passing
from mmrh_retriever.ranking.grid_regions import with_some_regions
from mmrh_retriever.ranking.hybrid import joined_shares
from mmrh_retriever.ranking.neighbours import Neighbours, PageId, neighbours_of
from mmrh_retriever.ranking.unreadable import without_unreadable
from mmrh_retriever.settings import check_top_n
from mmrh_retriever.types import Page, ScoredPage, ScoredRegion

# Keys of metadata
RETRIEVAL_SCORE_KEY = "retrieval_score"  # the score that the document came with
REGIONS_KEY = "mmrh_regions"  # the page's best regions, as RankedItem.region_records gives them
NEIGHBOUR_KEY = "mmrh_neighbour_of"  # of a page beside a hit: the hit's rank, from 1
ERROR_KEY = "mmrh_error"  # why a document was put last without a score

_BEYOND_SCORES = 1e100  # its square is finite

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RankedItem:
    """A document's index in the caller's list (``position``) with its score.

    ``score`` is ``None`` for a document that can't be read and was put last; ``error`` then says why. ``regions``
    holds the page's best regions, best first, where they were asked for; ``probability`` is that of the page being
    evidence, where a calibration holds.

    A neighbour stands behind the hit whose rank, from 1, is its ``neighbour_of``. Its score is its own, ``None`` if it
    was not ranked. If no document holds it, ``page`` is the page of the hit's PDF, and ``position`` is the hit's.
    """

    position: int
    score: float | None
    error: MMRHError | None = None
    regions: tuple[ScoredRegion, ...] = ()
    probability: float | None = None
    neighbour_of: int | None = None
    page: Page | None = None

    @classmethod
    def of(cls, position: int, scored: ScoredPage) -> RankedItem:
        """A document with what its page scored."""
        return cls(position, float(scored.score), probability=scored.probability)

    def region_records(self) -> list[dict[str, Any]]:
        """The regions as plain data: ``box`` and ``page_size`` in the page's units, ``kind``, ``score``, ``text``.

        ``kind`` is ``"cell"`` for the cells of a grid, which stand in where a page's layout is unknown.
        """
        return [
            {
                "box": list(found.box),
                "page_size": None if found.page.size is None else [float(side) for side in found.page.size],
                "kind": found.kind,
                "score": float(found.score),
                "text": found.region.text,
            }
            for found in self.regions
        ]


class AdapterSettings(DocumentSettings):
    """Settings that every adapter takes, and the ranking of documents that they describe.

    An adapter is a class of its framework and of this one. It gives what each of the framework's documents says of its
    page (:class:`~mmrh_retriever.adapters.PageClues`), and turns ranked items into the framework's results.

    The model is loaded at first use and shared by all adapters of the process that load it alike. An adapter may be
    given a ``reranker=`` instead. Its model, heads and settings for ranking then count; the settings for loading don't.
    """

    fuse: Literal["replace", "blend"] = Field(
        "replace", description="Score a document by its page alone, or blend that with the score that it came with."
    )
    retrieval_weight: float = Field(0.5, ge=0.0, le=1.0, description="The part of that score, if scores are blended.")
    score_threshold: Finite | None = Field(None, description="Documents that score lower are left out.")
    min_probability: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description="Documents are left out whose pages are less probably evidence; for models "
        "with a calibration (mmrh calibrate).",
    )
    on_error: Literal["raise", "last", "drop"] = Field(
        "raise", description="What to do with a document that can't be read: raise, put it last, leave it out."
    )
    with_regions: bool = Field(False, description="Put the best regions of each page into its document's metadata.")
    regions_per_page: int = Field(3, ge=1, description="How many regions of a page are kept.")
    neighbours: Neighbours | None = Field(
        None, description="Pages given along with each hit, not counted by top_n: the next, the previous, or both."
    )

    def rank_items(
        self,
        question: str,
        items: Sequence[Item],
        clues_of: Callable[[Item], PageClues],
        *,
        retrieval_score_of: Callable[[Item], object] = lambda item: None,
        top_n: int | None = None,
        score_threshold: float | None = None,
    ) -> list[RankedItem]:
        """Rank documents for a question, best first; equals keep the caller's order.

        ``clues_of`` gives what a document says of its page. Documents that lead to the same page are scored once.
        ``retrieval_score_of`` gives the score that a document came with, higher is better, for ``fuse="blend"``;
        anything but a finite number is none. ``score_threshold`` counts instead of the setting. A document that names a
        page which is not found is treated as ``on_missing_page`` says.

        Raises:
            QuestionError: an empty question.
            PageError, ContextOverflowError: a document that can't be read, or is too long (``on_error="raise"``).
            SettingsError: ``top_n`` below 1, a threshold that is no finite number, or a least probability where there
                is no calibration.
        """
        with ranking_span(question, self.model_label, top_n) as span:
            check_top_n(top_n)
            if not isinstance(question, str) or not question.strip():
                advice = "Give it as text (a query by image alone can't be ranked)."
                raise QuestionError(f"The question is empty; pages are ranked by what its words attend to. {advice}")
            source, items = self.page_source(), list(items)  # the caller's list may change meanwhile
            found = dict(enumerate(self._page_or_error(source, clues_of, item) for item in items))
            failed: dict[int, MMRHError] = {i: error for i, error in found.items() if isinstance(error, PageError)}
            unique: dict[Hashable, Page] = {}
            pages = {i: unique.setdefault(page_key(page), page) for i, page in found.items() if isinstance(page, Page)}
            span.read(pages.get(i) for i in found)
            self.warn_of_bundled(unique.values())
            reranker = self.reranker
            ranking, unreadable = self.without_unreadable(
                list(unique.values()), lambda good: reranker.rank(question, good)
            )
            scores = {id(scored.page): scored for scored in ranking or []}
            failed |= {i: unreadable[id(page)] for i, page in pages.items() if id(page) in unreadable}
            ranked = [RankedItem.of(i, scores[id(page)]) for i, page in pages.items() if id(page) in scores]
            if self.fuse == "blend":
                ranked = blended(ranked, {i: retrieval_score_of(items[i]) for i in pages}, self.retrieval_weight)
            chosen = self.choose(ranked, failed, top_n=top_n, score_threshold=score_threshold)
            span.ranked((pages.get(item.position), item.score) for item in chosen)
            if self.with_regions:
                readable = [item.position for item in chosen if item.score is not None]
                layouts = {i: self._page_or_error(source, clues_of, items[i], layout=True) for i in readable}
                with_layout = {i: with_some_regions(page) for i, page in layouts.items() if isinstance(page, Page)}
                chosen = self.add_regions(
                    chosen, with_layout, lambda pictured: reranker.rank_regions(question, pictured)
                )
            if self.neighbours is None:
                return chosen
            ids = {i: page_id(source, clues_of(items[i]), page) for i, page in pages.items()}
            return self.add_neighbours(
                chosen, ids, ranked, failed, lambda i, index: page_beside(source, clues_of(items[i]), pages[i], index)
            )

    def warn_of_bundled(self, pages: Collection[Page]) -> None:
        """Warn, once per process, if the bundled model is to rank pages by images alone, and most have a text layer."""
        name = str(self.reranker.backbone.config._name_or_path or "")
        with_text = 2 * sum(bool(page.text) for page in pages) > len(pages)
        if with_text and is_bundled(name) and not self.reranker.settings.hybrid:
            advice = "Leave hybrid=False out, or name a model with model=."
            warn_once(f"Most of these pages have a text layer, which is not used. {BUNDLED_PURPOSE} {advice}")

    def choose(
        self,
        ranked: list[RankedItem],
        failed: dict[int, MMRHError],
        *,
        top_n: int | None,
        score_threshold: float | None,
    ) -> list[RankedItem]:
        """Order scored items, leave out those below the limits, put the failed ones last, cut to ``top_n``.

        Raises:
            SettingsError: a threshold that is no finite number, or a least probability where there is no calibration.
        """
        threshold = self.score_threshold if score_threshold is None else score_threshold
        if threshold is not None and not math.isfinite(threshold):
            raise SettingsError(f"score_threshold is a finite number, or None for all; got {threshold!r}.")
        if self.min_probability is not None:
            probable = passing([item.probability for item in ranked], self.min_probability, self.reranker.uncalibrated)
            ranked = list(compress(ranked, probable))
        best = [item for item in ranked if threshold is None or (item.score is not None and item.score >= threshold)]
        best.sort(key=lambda item: (-(item.score or 0.0), item.position))
        if self.on_error == "last":
            best += [RankedItem(position, None, error) for position, error in sorted(failed.items())]
        return best[:top_n]

    def add_regions(
        self, items: list[RankedItem], pages: dict[int, Page], rank_regions: Callable[[list[Page]], list[ScoredRegion]]
    ) -> list[RankedItem]:
        """Give ranked items the best regions of their pages, which are known by position.

        ``rank_regions`` gives the regions of pages that have an image, best first. A page that can no longer be read
        has none, unless ``on_error`` is ``"raise"``.
        """
        keys = {position: page_key(page) for position, page in pages.items() if page.image is not None}
        pictured = {key: pages[position] for position, key in keys.items()}
        found: dict[Hashable, list[ScoredRegion]] = {}
        for region in self.without_unreadable(list(pictured.values()), rank_regions)[0] or []:
            found.setdefault(page_key(region.page), []).append(region)
        best = {position: tuple(found.get(key, ())[: self.regions_per_page]) for position, key in keys.items()}
        return [replace(item, regions=best.get(item.position, ())) for item in items]

    def add_neighbours(
        self,
        items: list[RankedItem],
        ids: Mapping[int, PageId | None],
        ranked: Collection[RankedItem],
        failed: Collection[int] = (),
        open_page: Callable[[int, int], Page | None] = lambda position, index: None,
    ) -> list[RankedItem]:
        """Put the pages beside each hit behind it, as ``neighbours`` says; none twice, and no hit.

        ``ids`` has the documents' files and pages by position. Of several documents of a page the first is given, and
        none that ``failed``. ``open_page`` makes the page beside a hit that no document holds, of the hit's position
        and the page's index. Documents that could not be read stay last.
        """
        hits = [item for item in items if item.error is None]
        holders: dict[PageId | None, int] = {}
        for position, page in ids.items():
            holders.setdefault(page, position)
        scores = {item.position: item.score for item in ranked}
        found: list[RankedItem] = []
        beside = neighbours_of([ids.get(hit.position) for hit in hits], self.neighbours)
        for rank, (hit, pages) in enumerate(zip(hits, beside, strict=True), start=1):
            found.append(hit)
            for page in pages:
                holder = holders.get(page)
                if holder is None and (opened := open_page(hit.position, page[1])) is not None:
                    found.append(RankedItem(hit.position, None, neighbour_of=rank, page=opened))
                elif holder is not None and holder not in failed:
                    found.append(RankedItem(holder, scores.get(holder), neighbour_of=rank))
        return found + items[len(hits) :]

    def without_unreadable(
        self, pages: Sequence[Page], run: Callable[[list[Page]], Result]
    ) -> tuple[Result | None, dict[int, MMRHError]]:
        """What ``run`` gives for pages (``None`` if there are none), and errors by the ``id`` of their page.

        Unless ``on_error`` is ``"raise"``, it is run again without pages that can't be read.
        """
        if self.on_error == "raise":
            return (run(list(pages)) if pages else None), {}
        return without_unreadable(self.reranker, pages, run)

    def _page_or_error(
        self, source: PageSource, clues_of: Callable[[Item], PageClues], item: Item, *, layout: bool = False
    ) -> Page | PageError | None:
        """A document's page; ``None`` if it names one that is not found and is left out."""
        try:
            clues = clues_of(item)
            page = source.page(clues, layout=layout)
        except PageError as error:
            if self.on_error == "raise":
                raise
            return error
        if page.image is not None or not clues.names_a_page:
            return page
        problem = source.why_no_page(clues)
        if self.on_missing_page == "raise":
            raise PageError(problem, source=clues.doc_id)
        if self.on_missing_page == "drop":
            return None
        warn_once(f"{problem} Its text is scored; on_missing_page= says what to do instead.")
        return page


def blended(ranked: list[RankedItem], came_with: Mapping[int, object], weight: float) -> list[RankedItem]:
    """Ranked items with shares among them: of their scores, and of those that they came with, as in hybrid scores.

    An item that came without a finite number keeps its share; if all did, scores stay as they are.
    """
    theirs = np.array([_finite(came_with.get(item.position)) for item in ranked])
    known = np.isfinite(theirs)
    if not known.any():
        return ranked
    joined = joined_shares(np.array([item.score for item in ranked]), theirs, known, weight)
    return [replace(item, score=float(share)) for item, share in zip(ranked, joined, strict=True)]


def _finite(score: object) -> float:
    """A score as a float; NaN for anything that is no number, or is beyond all scores, as infinity is."""
    if isinstance(score, bool) or not isinstance(score, int | float | np.floating | np.integer):
        return math.nan
    try:
        number = float(score)
    except OverflowError:
        return math.nan
    return number if abs(number) < _BEYOND_SCORES else math.nan


def page_key(page: Page) -> Hashable:
    """Equal for pages that show the same page of the same file; the page itself if it is in memory."""
    if isinstance(page.image, Path):
        return str(page.image), page.text
    origin = page.metadata.get("path", page.metadata.get("url"))
    if page.image is not None and origin is not None:
        return str(origin), page.index
    return id(page)
