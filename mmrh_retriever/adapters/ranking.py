"""Ranking documents that are not pages yet: pages found, unreadable ones set apart, the best regions added."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field

from mmrh_retriever.adapters.clues import PageClues
from mmrh_retriever.adapters.page_sources import PageSource
from mmrh_retriever.errors import ContextOverflowError, MMRHError, PageError, QuestionError
from mmrh_retriever.ranking.inputs import page_numbers
from mmrh_retriever.ranking.reranker import Reranker
from mmrh_retriever.settings import check_top_n
from mmrh_retriever.types import Page, Region, ScoredRegion, grid_boxes

RETRIEVAL_SCORE_KEY = "retrieval_score"
"""Metadata: the score that the document came with."""
REGIONS_KEY = "mmrh_regions"
"""Metadata: the page's best regions (see :meth:`RankedItem.region_records`)."""
ERROR_KEY = "mmrh_error"
"""Metadata: why a document was put last without a score."""

GRID_CELLS = 24
"""About how many cells serve as the regions of a page whose layout is unknown."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RankedItem:
    """A document's index in the caller's list (``position``) with its score.

    ``score`` is ``None`` for a document that can't be read and was put last; ``error`` then says why. ``regions``
    holds the page's best regions, best first, where they were asked for.
    """

    position: int
    score: float | None
    error: MMRHError | None = None
    regions: tuple[ScoredRegion, ...] = ()

    def region_records(self) -> list[dict[str, Any]]:
        """The regions as plain data: ``box`` and ``page_size`` in the page's units, ``kind``, ``score``, ``text``.

        ``kind`` is ``"cell"`` for the cells of a grid, which stand in where a page's layout is unknown.
        """
        return [
            {
                "box": [float(side) for side in found.box],
                "page_size": None if found.page.size is None else [float(side) for side in found.page.size],
                "kind": found.kind,
                "score": float(found.score),
                "text": found.region.text,
            }
            for found in self.regions
        ]


class DocumentRanker(BaseModel):
    """Ranks a framework's documents, with the settings that decide which of them come back and how."""

    score_threshold: float | None = Field(None, description="Documents that score lower are left out.")
    on_error: Literal["raise", "last", "drop"] = Field(
        "raise", description="What to do with a document that can't be read: raise, put it last, leave it out."
    )
    with_regions: bool = Field(False, description="Put the best regions of each page into its document's metadata.")
    regions_per_page: int = Field(3, ge=1, description="How many regions of a page are kept.")

    @property
    @abstractmethod
    def reranker(self) -> Reranker:
        """The reranker that scores."""

    @abstractmethod
    def page_source(self) -> PageSource:
        """How pages are found and how far documents are trusted."""

    def rank_items(
        self,
        question: str,
        items: Sequence[Item],
        clues_of: Callable[[Item], PageClues],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
    ) -> list[RankedItem]:
        """Rank documents for a question, best first; equals keep the caller's order.

        Documents that lead to the same page are scored once. The items are not changed.

        Args:
            question: text.
            items: the framework's documents.
            clues_of: what one of them says of its page.
            top_n: how many to give at most; all if ``None``.
            score_threshold: instead of the setting.

        Raises:
            QuestionError: an empty question.
            PageError, ContextOverflowError: a document that can't be read, or is too long (``on_error="raise"``).
            SettingsError: ``top_n`` below 1.
        """
        check_top_n(top_n)
        if not isinstance(question, str) or not question.strip():
            raise QuestionError(
                "The question is empty; pages are ranked by what its words attend to. Give it as text (a query by "
                "image alone can't be ranked)."
            )
        source = self.page_source()
        pages: dict[int, Page] = {}
        unique: dict[Hashable, Page] = {}
        failed: dict[int, MMRHError] = {}
        for position, item in enumerate(items):
            found = self._page_or_error(source, item, clues_of)
            if isinstance(found, Page):
                pages[position] = unique.setdefault(page_key(found), found)
            else:
                failed[position] = found
        reranker = self.reranker
        ranking, unreadable = self.without_unreadable(
            list(unique.values()), lambda readable: reranker.rank(question, readable)
        )
        scores = {id(scored.page): float(scored.score) for scored in ranking or []}
        failed |= {position: unreadable[id(page)] for position, page in pages.items() if id(page) in unreadable}
        ranked = [RankedItem(position, scores[id(page)]) for position, page in pages.items() if id(page) in scores]
        chosen = self.choose(ranked, failed, top_n=top_n, score_threshold=score_threshold)
        if not self.with_regions:
            return chosen
        with_layout = {
            item.position: with_some_regions(source.page(clues_of(items[item.position]), layout=True))
            for item in chosen
            if item.score is not None
        }
        return self.add_regions(chosen, with_layout, lambda pictured: reranker.rank_regions(question, pictured))

    def choose(
        self,
        ranked: Sequence[RankedItem],
        failed: Mapping[int, MMRHError],
        *,
        top_n: int | None,
        score_threshold: float | None = None,
    ) -> list[RankedItem]:
        """Order scored items, leave out those below the threshold, put the failed ones last, cut to ``top_n``."""
        threshold = self.score_threshold if score_threshold is None else score_threshold
        best = [item for item in ranked if threshold is None or (item.score is not None and item.score >= threshold)]
        best.sort(key=lambda item: (-(item.score or 0.0), item.position))
        if self.on_error == "last":
            best += [RankedItem(position, None, error) for position, error in sorted(failed.items())]
        return best[:top_n]

    def add_regions(
        self,
        items: Sequence[RankedItem],
        pages: Mapping[int, Page],
        rank_regions: Callable[[list[Page]], Sequence[ScoredRegion]],
    ) -> list[RankedItem]:
        """Give the items their pages' best regions.

        Args:
            items: ranked items.
            pages: the items' pages, with regions where they have an image, by position.
            rank_regions: gives the regions of pages that have an image, best first.
        """
        pictured = {page_key(page): page for page in pages.values() if page.image is not None}
        found: dict[Hashable, list[ScoredRegion]] = {}
        for region in rank_regions(list(pictured.values())) if pictured else []:
            found.setdefault(page_key(region.page), []).append(region)
        result = []
        for item in items:
            page = pages.get(item.position)
            regions = [] if page is None else found.get(page_key(page), [])
            result.append(replace(item, regions=tuple(regions[: self.regions_per_page])))
        return result

    def without_unreadable(
        self, pages: Sequence[Page], run: Callable[[list[Page]], Result]
    ) -> tuple[Result | None, dict[int, MMRHError]]:
        """Run something over pages; unless ``on_error`` is ``"raise"``, again without those that can't be read.

        Returns:
            What ``run`` gave (``None`` if no page is left), and the errors by the ``id`` of their page.
        """
        if not pages:
            return None, {}
        try:
            return run(list(pages)), {}
        except (PageError, ContextOverflowError) as error:
            found = {} if self.on_error == "raise" else self._culprits(pages, error)
            if not found:
                raise
        result, others = self.without_unreadable([page for page in pages if id(page) not in found], run)
        return result, found | others

    def _page_or_error(self, source: PageSource, item: Item, clues_of: Callable[[Item], PageClues]) -> Page | PageError:
        try:
            return source.page(clues_of(item))
        except PageError as error:
            if self.on_error == "raise":
                raise
            return error

    def _culprits(self, pages: Sequence[Page], error: PageError | ContextOverflowError) -> dict[int, MMRHError]:
        """The pages that can't be put into a prompt, or that are too long for a window."""
        lengths = {
            id(page): self._length_or_error(page, number)
            for page, number in zip(pages, page_numbers(pages), strict=True)
        }
        found: dict[int, MMRHError] = {key: value for key, value in lengths.items() if isinstance(value, PageError)}
        if isinstance(error, ContextOverflowError) and error.tokens in lengths.values():  # else it is the question
            allowed = error.allowed
            found |= {key: error for key, value in lengths.items() if isinstance(value, int) and value > allowed}
        return found

    def _length_or_error(self, page: Page, number: int) -> int | PageError:
        try:
            return len(self.reranker.prompter.page_segment(page, number))
        except PageError as error:
            return error


def with_some_regions(page: Page) -> Page:
    """A page that has an image but no layout (a scan, a photo) with a grid of about square cells for regions."""
    if page.image is None or page.regions or page.size is None:
        return page
    width, height = page.size
    columns = max(1, round(math.sqrt(GRID_CELLS * width / height)))
    rows = max(1, round(GRID_CELLS / columns))
    boxes = grid_boxes((0.0, 0.0, width, height), rows, columns).tolist()
    return replace(page, regions=tuple(Region((x0, y0, x1, y1), kind="cell") for x0, y0, x1, y1 in boxes))


def page_key(page: Page) -> Hashable:
    """Equal for pages that show the same page of the same file; the page itself if it is in memory."""
    if isinstance(page.image, Path):
        return str(page.image), page.text
    if page.image is not None and "path" in page.metadata:
        return str(page.metadata["path"]), page.index
    return id(page)
