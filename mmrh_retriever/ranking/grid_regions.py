"""Regions for pages whose layout is unknown: the cells of a grid."""

from __future__ import annotations

import math
from dataclasses import replace

from mmrh_retriever.types import Page, Region, grid_boxes

GRID_CELLS = 24
"""About how many cells serve as the regions of a page."""


def with_some_regions(page: Page) -> Page:
    """A page that has an image but no layout (a scan, a photo) with a grid of about square cells for regions."""
    if page.image is None or page.regions or page.size is None:
        return page
    width, height = page.size
    columns = max(1, round(math.sqrt(GRID_CELLS * width / height)))
    rows = max(1, round(GRID_CELLS / columns))
    boxes = grid_boxes((0.0, 0.0, width, height), rows, columns).tolist()
    return replace(page, regions=tuple(Region((x0, y0, x1, y1), kind="cell") for x0, y0, x1, y1 in boxes))
