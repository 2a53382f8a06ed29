"""Boxes on a page, and areas of a picture: shares, groups, nesting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from mmrh_retriever.types import Box

Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.int32]


def union(boxes: Iterable[Box]) -> Box:
    """The smallest box around ``boxes``."""
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def area(box: Box) -> float:
    """The area of a box."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def overlap(one: Box, other: Box) -> Box:
    """What two boxes share; its area is 0 where they share nothing."""
    return max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])


def inside(box: Box, other: Box) -> float:
    """The share of ``box`` that lies in ``other``."""
    shared = overlap(box, other)
    if shared[2] <= shared[0] or shared[3] <= shared[1]:
        return 0.0
    return area(shared) / max(area(box), 1e-9)


def clip(box: Box, size: tuple[float, float]) -> Box | None:
    """The part of a box that lies on a page of ``size``, or None where there is none."""
    part = overlap(box, (0.0, 0.0, *size))
    return part if part[2] > part[0] and part[3] > part[1] else None


def grown(box: Box, by: float) -> Box:
    """A box moved outwards on all sides."""
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def without_nested(boxes: Sequence[Box]) -> list[Box]:
    """The boxes of which less than half lies in a larger one, from the largest on."""
    kept: list[Box] = []
    for box in sorted(boxes, key=area, reverse=True):
        if all(inside(box, other) < 0.5 for other in kept):
            kept.append(box)
    return kept


def clusters(boxes: Sequence[Box], gap: float) -> list[list[int]]:
    """Groups of boxes that lie within ``gap`` of each other, as positions."""
    if not boxes:
        return []
    cell = max(gap / 2, 1.0)
    x0, y0, x1, y1 = union(boxes)
    shape = (int((y1 - y0) / cell) + 3, int((x1 - x0) / cell) + 3)
    mask: Mask = np.zeros(shape, dtype=bool)
    spots = []
    for box in boxes:
        left, top = int((box[0] - x0) / cell), int((box[1] - y0) / cell)
        right, bottom = int((box[2] - x0) / cell) + 2, int((box[3] - y0) / cell) + 2
        mask[top : bottom + 1, left : right + 1] = True
        spots.append((top, left))
    labels = label(mask)
    groups: dict[int, list[int]] = {}
    for i, spot in enumerate(spots):
        groups.setdefault(int(labels[spot]), []).append(i)
    return list(groups.values())


def label(mask: Mask) -> Labels:
    """Number the connected areas of a mask (8 neighbours) from 1; 0 where the mask is false. ``(rows, columns)``."""
    labels: Labels = np.zeros(mask.shape, dtype=np.int32)
    parents = [0]

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = parents[parents[i]]
            i = parents[i]
        return i

    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    above: list[tuple[int, int, int]] = []
    for y in range(mask.shape[0]):
        row = []
        for start, stop in zip(np.flatnonzero(edges[y] == 1), np.flatnonzero(edges[y] == -1), strict=True):
            touching = [name for low, high, name in above if low <= stop and high >= start]
            name = root(touching[0]) if touching else len(parents)
            if not touching:
                parents.append(name)
            for other in touching[1:]:
                parents[root(other)] = name
            labels[y, start:stop] = name
            row.append((int(start), int(stop), name))
        above = row
    final = np.asarray([root(i) for i in range(len(parents))], dtype=np.int32)
    return final[labels]


def extents(labels: Labels) -> list[Box]:
    """The box around each label's area: ``(x0, y0, x1, y1)`` in pixels, for labels in ascending order."""
    ys, xs = np.nonzero(labels)
    names, places = np.unique(labels[ys, xs], return_inverse=True)
    boxes = np.empty((len(names), 4))
    boxes[:, :2] = np.inf
    boxes[:, 2:] = -np.inf
    np.minimum.at(boxes[:, 0], places, xs)
    np.minimum.at(boxes[:, 1], places, ys)
    np.maximum.at(boxes[:, 2], places, xs + 1)
    np.maximum.at(boxes[:, 3], places, ys + 1)
    return [(float(a), float(b), float(c), float(d)) for a, b, c, d in boxes]
