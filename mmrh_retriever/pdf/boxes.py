"""The one geometry of boxes: overlap, union, nesting and groups; and the connected areas of a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from mmrh_retriever.types import Box

Mask = npt.NDArray[np.bool_]
Boxes = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int32]


def union(boxes: Iterable[Box]) -> Box:
    """The smallest box around ``boxes``."""
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def area(box: Box) -> float:
    """The area of a box."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def union_area(boxes: Iterable[Box]) -> float:
    """The area that ``boxes`` cover together; what several of them cover counts once."""
    solid = [box for box in boxes if area(box) > 0]
    if not solid:
        return 0.0
    xs = np.unique([value for box in solid for value in (box[0], box[2])])
    ys = np.unique([value for box in solid for value in (box[1], box[3])])
    covered = np.zeros((len(ys) - 1, len(xs) - 1), dtype=bool)  # (cells down, cells across) between the boxes' edges
    for x0, y0, x1, y1 in solid:
        covered[(ys[:-1] >= y0) & (ys[1:] <= y1)] |= (xs[:-1] >= x0) & (xs[1:] <= x1)
    return float(np.diff(ys) @ covered @ np.diff(xs))


def overlap(one: Box, other: Box) -> Box:
    """What two boxes share. Its area is 0 where they share nothing."""
    return max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])


def inside(box: Box, other: Box) -> float:
    """The share of ``box`` that lies in ``other``."""
    return area(overlap(box, other)) / max(area(box), 1e-9)


def clip(box: Box, size: tuple[float, float]) -> Box | None:
    """The part of a box that lies on a page of ``size`` (width, height), or ``None`` if nothing does."""
    part = overlap(box, (0.0, 0.0, *size))
    return part if area(part) > 0 else None


def grown(box: Box, by: float) -> Box:
    """A box whose four sides are moved outwards."""
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def without_nested(boxes: Sequence[Box]) -> list[Box]:
    """The boxes of which less than half lies in a larger one, largest first."""
    kept: list[Box] = []
    for box in sorted(boxes, key=area, reverse=True):
        if all(inside(box, other) < 0.5 for other in kept):
            kept.append(box)
    return kept


def clusters(boxes: Sequence[Box], gap: float) -> list[list[int]]:
    """Groups of boxes that lie within ``gap`` of each other, as indices into ``boxes``.

    Memory grows with the number of boxes, whatever their extent.
    """
    if not boxes:
        return []
    x0, y0, _, _ = union(boxes)
    cells = np.floor((np.asarray(boxes) - (x0, y0, x0, y0)) / max(gap / 2, 1.0))  # (boxes, 4) on a grid that none holds
    cells[:, 2:] += 3  # half a gap around a box, and a touch is enough
    levels = np.unique(cells[:, 1::2])
    tops, bottoms = np.searchsorted(levels, cells[:, 1]), np.searchsorted(levels, cells[:, 3])
    # A sweep from left to right: which box reached furthest at each level, and how far.
    owner, reach = np.zeros(len(levels), dtype=np.int64), np.full(len(levels), -1.0)
    pairs = []
    for index in np.argsort(cells[:, 0], kind="stable"):
        there = slice(tops[index], bottoms[index] + 1)
        pairs += [(index, met) for met in set(owner[there][reach[there] >= cells[index, 0]].tolist())]
        owner[there] = index
        reach[there] = np.maximum(reach[there], cells[index, 2])
    touching = np.asarray(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = sparse.coo_array((np.ones(len(pairs)), touching), shape=(len(boxes), len(boxes)))
    groups: dict[int, list[int]] = {}
    for index, name in enumerate(csgraph.connected_components(graph, directed=False)[1]):
        groups.setdefault(int(name), []).append(index)
    return list(groups.values())


def label(mask: Mask) -> Labels:
    """Number the connected areas of a mask (8 neighbours) from 1; 0 where the mask is false. ``(rows, columns)``."""
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    return np.asarray(labels, dtype=np.int32)


def extents(labels: Labels) -> list[Box]:
    """The box around each area that :func:`label` numbered, in that order: ``(x0, y0, x1, y1)`` in pixels."""
    return [
        (float(across.start), float(down.start), float(across.stop), float(down.stop))
        for down, across in ndimage.find_objects(labels)
    ]


# Many boxes at once


def as_boxes(boxes: npt.ArrayLike) -> Boxes:
    """``(boxes, 4)`` float64, or a ValueError."""
    found = np.asarray(boxes, dtype=np.float64)
    if found.ndim != 2 or found.shape[1] != 4:
        raise ValueError(f"Boxes are an array of shape (boxes, 4), got {found.shape}.")
    return found


def box_areas(boxes: npt.ArrayLike) -> Boxes:
    """``(boxes,)``: the areas of ``(boxes, 4)`` boxes, in the square of their units."""
    corners = np.asarray(boxes, dtype=np.float64)
    return np.asarray((corners[:, 2:] - corners[:, :2]).prod(axis=1), dtype=np.float64)


def overlap_areas(boxes: npt.ArrayLike, others: npt.ArrayLike) -> Boxes:
    """``(boxes, others)``: the area that each box shares with each other one."""
    ours, theirs = as_boxes(boxes)[:, None], as_boxes(others)[None]
    sides = np.minimum(ours[..., 2:], theirs[..., 2:]) - np.maximum(ours[..., :2], theirs[..., :2])
    return np.asarray(np.clip(sides, 0.0, None).prod(axis=-1), dtype=np.float64)
