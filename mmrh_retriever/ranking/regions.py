"""Boxes of pages as ranked regions: from the page pass itself, or each box as a candidate image of its own.

The page pass has seen every box already: a box's score is what the visual tokens under it got (``"page"``). Li et al.
2026 (arXiv 2605.27243) cut every box out and run it as an image (``"crops"``). That costs a pass over all boxes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from mmrh_retriever.errors import PageError
from mmrh_retriever.images import MIN_IMAGE_SIDE, as_rgb, open_image
from mmrh_retriever.ranking.region_scores import Aggregate, region_fractions, region_scores
from mmrh_retriever.settings import check_top_n
from mmrh_retriever.types import ImageData, ImageSource, Page, Region, ScoredPage, ScoredRegion

RegionMethod = Literal["page", "crops"]
"""``"page"``: from the page pass, no crop and no extra forward. ``"crops"``: each box is a candidate image."""

MIN_CROP_SIDE = 28
"""Crops narrower or lower than this, in pixels, get white around them: image processors want a patch or two."""
MAX_CROP_RATIO = 100
"""Crops longer than this many times their shorter side get white along it; image processors refuse longer strips."""


def check_regions(pages: Sequence[Page], method: str) -> None:
    """See, before a model runs, that the pages' regions can be ranked. Some pages may have none."""
    if method not in get_args(RegionMethod):
        raise ValueError(
            f"No method of ranking regions is called {method!r}. Expected one of {', '.join(get_args(RegionMethod))}."
        )
    if not any(page.regions for page in pages):
        raise PageError(
            f"None of the {len(pages)} pages has regions to rank. Read PDF files with read_pdf(path, layout=True), or "
            "give boxes of your own: Page(..., regions=[Region((x0, y0, x1, y1))]), in the units of the page's size.",
            source=pages[0].doc_id if pages else None,
        )
    for page in pages:
        region_fractions(page)


def ranked_regions(
    ranking: Iterable[ScoredPage], *, aggregate: Aggregate, top_n: int | None = None
) -> list[ScoredRegion]:
    """The boxes of pages that were ranked with their token scores, best first over all pages.

    Equals stand in the order of the pages and of the regions on them.
    """
    found: list[tuple[float, Page, Region]] = []
    for scored in sorted(ranking, key=lambda scored: scored.position):
        page = scored.page
        if not page.regions:
            continue
        if scored.token_scores is None or scored.grid is None:
            raise page.error(
                f"The regions of {page.name} can't be ranked from the page pass: the model read the page as text, "
                "whose tokens see no part of it. Give the page an image and the model a vision tower, or use "
                "method='crops'."
            )
        scores = region_scores(scored.token_scores, scored.grid, region_fractions(page), aggregate)
        found += [(float(score), page, region) for score, region in zip(scores, page.regions, strict=True)]
    found.sort(key=lambda item: -item[0])  # stable
    return [
        ScoredRegion(page=page, region=region, score=score, rank=rank)
        for rank, (score, page, region) in enumerate(found[: check_top_n(top_n)], start=1)
    ]


class Crops:
    """The boxes of pages, each as a page of its own, in the order of pages and regions.

    A box's image is its own, or is cut out of the page when needed. For labels ``metadata`` has the ``layout_id`` that
    the region brings (else its index among all boxes) and the ``page_index``.
    """

    def __init__(self, pages: Sequence[Page]) -> None:
        drawn = lru_cache(maxsize=1)(Page.pixels)  # the page drawn last
        self._origins = [(page, region) for page in pages for region in page.regions]
        boxes = (box for page in pages for box in region_fractions(page))
        self.pages = [
            Page(
                image=_image(page, region, tuple(box.tolist()), drawn),
                text=region.text,
                doc_id=page.doc_id,
                index=page.index,
                size=(region.box[2] - region.box[0], region.box[3] - region.box[1]),
                metadata={"region": region.kind, "layout_id": number, "page_index": page.index, **region.metadata},
            )
            for number, ((page, region), box) in enumerate(zip(self._origins, boxes, strict=True))
        ]

    def ranked(self, ranking: Iterable[ScoredPage]) -> list[ScoredRegion]:
        """A ranking of ``pages`` as one of the regions that they show."""
        return [
            ScoredRegion(*self._origins[scored.position], score=scored.score, rank=scored.rank) for scored in ranking
        ]


def _image(page: Page, region: Region, box: tuple[float, ...], drawn: Callable[[Page], Image.Image]) -> Any:
    """What the model is shown of a box: an image source, or ``None``."""
    if region.image is not None:
        return RegionImage(page, region.image)
    return None if page.image is None else RegionCrop(page, box, drawn)


@dataclass(frozen=True, slots=True, eq=False)
class RegionCrop:
    """A part of a page's image: an :class:`~mmrh_retriever.types.ImageSource`.

    ``box`` is ``x0, y0, x1, y1`` in fractions of the page.
    """

    page: Page
    box: tuple[float, ...]
    drawn: Callable[[Page], Image.Image] = Page.pixels

    def load(self) -> Image.Image:
        """Cut the part out, to whole pixels outwards; crops too small or too long for a model get white around them."""
        image = self.drawn(self.page)
        edges = np.array(self.box) * (image.width, image.height, image.width, image.height)
        left, top = (int(edge) for edge in np.floor(edges[:2] + 1e-6))
        right, bottom = (
            max(int(edge), low + 1) for edge, low in zip(np.ceil(edges[2:] - 1e-6), (left, top), strict=True)
        )
        return _with_margin(image.crop((left, top, right, bottom)), MIN_CROP_SIDE)


@dataclass(frozen=True, slots=True, eq=False)
class RegionImage:
    """The image that a region of a page brings: an :class:`~mmrh_retriever.types.ImageSource`."""

    page: Page
    image: ImageData | ImageSource

    def load(self) -> Image.Image:
        """Decode the image; one that no page may be like, too small or too long, gets white around it."""
        given = self.image if isinstance(self.image, ImageData) else self.image.load()
        opened = open_image(given, f"a region of {self.page.name}", self.page.error, any_shape=True)
        return _with_margin(as_rgb(opened), MIN_IMAGE_SIDE)


def _with_margin(image: Image.Image, least: int) -> Image.Image:
    """The image, in white if a side is below ``least`` or :data:`MAX_CROP_RATIO` times shorter than the other."""
    least = max(least, math.ceil(max(image.size) / MAX_CROP_RATIO))
    size = (max(image.width, least), max(image.height, least))
    if size == image.size:
        return image
    ground = Image.new("RGB", size, "white")
    ground.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return ground
