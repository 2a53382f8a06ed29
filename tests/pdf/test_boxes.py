"""Groups of boxes: as a mask of the page would join them, without the mask."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pymupdf
import pytest

from mmrh_retriever.pdf.boxes import clusters, label, union
from mmrh_retriever.pdf.reader import read_pdf
from mmrh_retriever.types import Box
from tests.pdf.made_pdfs import edited, make_pdf


def by_mask(boxes: list[Box], gap: float) -> list[list[int]]:
    """The same groups from a drawing of all boxes, as large as their extent."""
    cell = max(gap / 2, 1.0)
    x0, y0, x1, y1 = union(boxes)
    mask = np.zeros((int((y1 - y0) / cell) + 3, int((x1 - x0) / cell) + 3), dtype=bool)
    corners = ((np.asarray(boxes) - (x0, y0, x0, y0)) / cell).astype(int)
    for left, top, right, bottom in corners:
        mask[top : bottom + 3, left : right + 3] = True
    groups: dict[int, list[int]] = {}
    for index, name in enumerate(label(mask)[corners[:, 1], corners[:, 0]]):
        groups.setdefault(int(name), []).append(index)
    return list(groups.values())


@pytest.mark.parametrize("gap", [1.0, 2.0, 8.0, 10.0])
def test_groups_are_those_of_a_mask(gap: float) -> None:
    rng = np.random.default_rng(int(gap))
    for count in [1, 2, 3, 5, 10, 40, 150] * 20:
        corners = rng.uniform(-50, 1000, (count, 2))
        sides = rng.choice([0.2, 5.0, 40.0, 400.0], (count, 2), p=[0.2, 0.4, 0.3, 0.1]) * rng.uniform(0, 1, (count, 2))
        boxes = [tuple(map(float, box)) for box in np.hstack([corners, corners + sides])]
        assert clusters(boxes, gap) == by_mask(boxes, gap)  # type: ignore[arg-type]


def test_memory_is_by_boxes_not_by_extent() -> None:
    far = [
        (0.0, 0.0, 50.0, 10.0),
        (1e6, 1e6, 1e6 + 50, 1e6 + 10),
        (1e6 + 52, 1e6, 1e6 + 90, 1e6 + 9),
        (0.0, 0.0, 3e38, 1.0),
    ]
    tracemalloc.start()
    try:
        assert clusters(far, 8.0) == [[0, 3], [1, 2]]
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_wide_page_s_layout_takes_no_memory_for_its_extent() -> None:
    def enlarge(document: pymupdf.Document) -> None:
        document[0].insert_text((14_300, 14_300), "far away")
        document.xref_set_key(document[0].xref, "UserUnit", "75000")

    data = edited(make_pdf(["Two words"], (14_400, 14_400)), enlarge)
    tracemalloc.start()
    try:
        texts = {region.text for region in read_pdf(data, layout=True)[0].regions}
        assert texts == {"Two words", "far away"}
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
