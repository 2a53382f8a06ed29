"""Between a page's visual tokens and boxes on it: plain array maths, no model, no pixels.

A visual token stands for a rectangle of the page (:class:`~mmrh_retriever.types.PatchGrid`). What a box gets of a
token is the share of the token's rectangle under the box, exactly; tokens are not snapped to boxes. Families with
several grids over a page (tiles and an overview) need nothing special: all tokens that see a spot count.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from mmrh_retriever.pdf.boxes import as_boxes, box_areas, overlap_areas
from mmrh_retriever.types import FloatArray, Page, PatchGrid

Aggregate = Literal["sum", "mean", "sqrt_area", "peak"]
"""How the tokens under a box become its score; see :func:`region_scores`."""
AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)
DEFAULT_AGGREGATE: Aggregate = "sum"

Array = npt.NDArray[np.float64]

_AREA_POWERS = {"sum": 0.0, "mean": 1.0, "sqrt_area": 0.5}


def region_scores(
    token_scores: FloatArray, grid: PatchGrid, boxes: npt.ArrayLike, aggregate: Aggregate = DEFAULT_AGGREGATE
) -> Array:
    """Scores of boxes from the scores of a page's visual tokens.

    Args:
        token_scores: ``(visual tokens,)``, such as :attr:`ScoredPage.token_scores`: calibrated attention mass.
        grid: where the tokens lie.
        boxes: ``(boxes, 4)``, ``x0, y0, x1, y1`` in fractions of the page; what hangs over the page is cut off.
        aggregate: with ``m`` for the tokens' scores, each times the share of the token under the box, added up,
            and ``a`` for the box's area as a fraction of the page's:
            ``"sum"`` is ``m``, the attention mass on the box, so that a partition of the page adds up to the page;
            ``"mean"`` is ``m / a``, mass per page area (what the page would get if all of it were like the box);
            ``"sqrt_area"`` is ``m / sqrt(a)``, between the two;
            ``"peak"`` is the best single token, times the overlap divided by the smaller of token and box, so that
            a token wholly under the box, or wholly over it, counts in full and a sliver hardly.

    Returns:
        ``(boxes,)`` float64.

    Raises:
        ValueError: scores that do not fit the grid, a box off the page, or an unknown aggregate.
    """
    scores = _scores_on(grid, token_scores)
    if aggregate not in AGGREGATES:
        raise ValueError(f"No aggregate is called {aggregate!r}. Expected one of {', '.join(AGGREGATES)}.")
    cut = np.clip(as_boxes(boxes), 0.0, 1.0)
    areas = box_areas(cut)  # (boxes,)
    if (areas <= 0.0).any():
        number = int(np.flatnonzero(areas <= 0.0)[0])
        raise ValueError(
            f"The box {number} has no area on the page: {np.asarray(boxes)[number].tolist()}. Boxes are fractions of "
            "the page, x0 < x1 and y0 < y1, and reach into 0 to 1."
        )
    shared = overlap_areas(cut, grid.boxes)  # (boxes, tokens)
    token_areas = box_areas(grid.boxes)  # (tokens,)
    if aggregate == "peak":
        cover = shared / np.minimum(areas[:, None], token_areas)
        peaks = np.where(cover > 0.0, cover * scores, -np.inf).max(axis=1, initial=-np.inf)
        return np.where(np.isfinite(peaks), peaks, 0.0)
    mass: Array = (shared / token_areas) @ scores
    return np.asarray(mass / areas ** _AREA_POWERS[aggregate], dtype=np.float64)


def mass_array(token_scores: FloatArray, grid: PatchGrid, *, shape: tuple[int, int] | None = None) -> FloatArray:
    """Token scores as one dense array over the page: ``(rows, columns)`` float32, the mass on each cell.

    The grid's own rows and columns unless a shape is given. Tokens give to the cells under them by the shares of their
    areas, and overlapping grids add up, so the whole array adds up to the tokens' sum.
    """
    scores = _scores_on(grid, token_scores)
    rows, columns = shape or (grid.rows, grid.columns)
    if rows < 1 or columns < 1:
        raise ValueError(f"An array has at least one row and one column, got {rows} x {columns}.")
    boxes = grid.boxes.astype(np.float64)
    across = _overlap(boxes[:, 0::2], np.linspace(0.0, 1.0, columns + 1))  # (tokens, columns)
    down = _overlap(boxes[:, 1::2], np.linspace(0.0, 1.0, rows + 1))  # (tokens, rows)
    density = scores / box_areas(boxes)  # (tokens,)
    return (down.T @ (across * density[:, None])).astype(np.float32)


def region_fractions(page: Page) -> Array:
    """The boxes of a page's regions in fractions of its width and height, cut at its edges: ``(regions, 4)``."""
    if not page.regions:
        return np.zeros((0, 4))
    if page.size is None:
        raise page.error(
            f"The regions of {page.name} can't be scaled: the page has no size. Give Page(size=(width, height)) in the "
            "units of the boxes."
        )
    width, height = page.size
    boxes = np.array([region.box for region in page.regions], dtype=np.float64) / (width, height, width, height)
    cut = np.clip(boxes, 0.0, 1.0)
    off = np.flatnonzero((cut[:, :2] >= cut[:, 2:]).any(axis=1))
    if off.size:
        number = int(off[0])
        raise page.error(
            f"The region {number} of {page.name}, {page.regions[number].box}, lies off the page, which is {width:g} x "
            f"{height:g}. Give boxes in the same units as the page's size (points for PDF pages)."
        )
    return cut


def _scores_on(grid: PatchGrid, token_scores: FloatArray) -> Array:
    scores = np.asarray(token_scores, dtype=np.float64)
    if scores.shape != (len(grid),):
        raise ValueError(
            f"Got {scores.size} scores of shape {scores.shape} for a grid of {len(grid)} visual tokens. Expected one "
            "score per token; take both from the same scored page."
        )
    return scores


def _overlap(sides: Array, edges: Array) -> Array:
    """``(tokens, cells)``: the length that each token's side shares with each cell between the edges."""
    low = np.maximum(sides[:, :1], edges[None, :-1])
    high = np.minimum(sides[:, 1:], edges[None, 1:])
    return np.asarray(np.clip(high - low, 0.0, None), dtype=np.float64)
