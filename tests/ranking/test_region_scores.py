from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrh_retriever.errors import PageError
from mmrh_retriever.pdf.boxes import overlap_areas
from mmrh_retriever.ranking.region_scores import AGGREGATES, mass_array, region_fractions, region_scores
from mmrh_retriever.types import Page, PatchGrid, Region, grid_boxes

WHOLE = (0.0, 0.0, 1.0, 1.0)
TWO_BY_TWO = PatchGrid.regular(2, 2)
SCORES = np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32)


def tiles_and_overview(tiles=(2, 3), side=2, overview_first=False):
    """The shape of InternVL and Idefics3 (overview last) and of LLaVA-OneVision (overview first)."""
    rows, columns = tiles
    fine = [grid_boxes(box, side, side) for box in map(tuple, grid_boxes(WHOLE, rows, columns).tolist())]
    coarse = grid_boxes(WHOLE, side, side)
    parts = [coarse, *fine] if overview_first else [*fine, coarse]
    return PatchGrid(np.concatenate(parts), rows * side, columns * side)


@st.composite
def grids(draw):
    if draw(st.booleans()):
        return PatchGrid.regular(draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    tiles = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    return tiles_and_overview(tiles, draw(st.integers(1, 3)), draw(st.booleans()))


@st.composite
def scored_grids(draw):
    grid = draw(grids())
    values = draw(st.lists(st.floats(-1, 1, width=32), min_size=len(grid), max_size=len(grid)))
    return grid, np.array(values, dtype=np.float32)


@st.composite
def partitions(draw):
    """Boxes that cover the page once: cuts at any place."""
    cut = st.lists(st.floats(0.01, 0.99), max_size=4, unique=True)
    xs, ys = ([0.0, *sorted(draw(cut)), 1.0] for _ in range(2))
    return np.array([(x0, y0, x1, y1) for y0, y1 in pairwise(ys) for x0, x1 in pairwise(xs)])


class TestOverlapAreas:
    def test_a_box_over_half_a_token_has_half_its_area(self):
        found = overlap_areas(np.array([[0.0, 0.0, 0.25, 0.5], [0.25, 0.25, 0.75, 0.75]]), TWO_BY_TWO.boxes)
        np.testing.assert_allclose(found, [[0.125, 0, 0, 0], [0.0625] * 4])

    def test_boxes_that_only_touch_share_nothing(self):
        assert overlap_areas(np.array([[0.5, 0.0, 1.0, 0.5]]), TWO_BY_TWO.boxes).tolist() == [[0, 0.25, 0, 0]]

    def test_a_spot_that_two_grids_cover_counts_in_both(self):
        grid = tiles_and_overview((1, 2), side=1)  # left half, right half, whole
        np.testing.assert_allclose(overlap_areas(np.array([[0.0, 0.0, 0.5, 1.0]]), grid.boxes), [[0.5, 0.0, 0.5]])


class TestRegionScores:
    # The box covers the two left tokens whole and half of each of the right ones: 0.75 of the page.
    BOX = np.array([[0.0, 0.0, 0.75, 1.0]])

    @pytest.mark.parametrize(
        ("aggregate", "expected"),
        [
            ("sum", 0.1 + 0.3 + 0.5 * (0.2 + 0.4)),
            ("mean", 0.7 / 0.75),
            ("sqrt_area", 0.7 / 0.75**0.5),
            ("peak", 0.3),  # half of 0.4 is less than the whole of 0.3
        ],
    )
    def test_by_hand(self, aggregate, expected):
        found = region_scores(SCORES, TWO_BY_TWO, self.BOX, aggregate)
        assert found == pytest.approx([expected])

    def test_overlapping_grids_by_hand(self):
        grid = tiles_and_overview((1, 2), side=1)  # left half, right half, whole
        scores = np.array([0.2, 0.4, 0.6], dtype=np.float32)
        left = np.array([[0.0, 0.0, 0.5, 1.0]])
        assert region_scores(scores, grid, left, "sum") == pytest.approx([0.2 + 0.3])
        assert region_scores(scores, grid, left, "mean") == pytest.approx([0.5 / 0.5])
        assert region_scores(scores, grid, left, "peak") == pytest.approx([0.6])  # lies wholly on that token

    def test_peak_of_a_box_smaller_than_a_token_is_the_tokens(self):
        box = np.array([[0.6, 0.6, 0.7, 0.7]])
        assert region_scores(SCORES, TWO_BY_TWO, box, "peak") == pytest.approx([0.4])

    def test_peak_under_negative_scores_only_looks_at_tokens_it_touches(self):
        box = np.array([[0.0, 0.0, 0.5, 0.5]])
        assert region_scores(-SCORES, TWO_BY_TWO, box, "peak") == pytest.approx([-0.1])

    def test_what_hangs_over_the_page_is_cut_off(self):
        over, on = np.array([[-0.5, -1.0, 0.5, 0.5]]), np.array([[0.0, 0.0, 0.5, 0.5]])
        for aggregate in AGGREGATES:
            assert region_scores(SCORES, TWO_BY_TWO, over, aggregate) == pytest.approx(
                region_scores(SCORES, TWO_BY_TWO, on, aggregate)
            )

    def test_a_box_where_no_token_lies_gets_nothing(self):
        left_half = PatchGrid(grid_boxes((0.0, 0.0, 0.5, 1.0), 2, 2), 2, 2)
        for aggregate in AGGREGATES:
            assert region_scores(SCORES, left_half, np.array([[0.6, 0.0, 1.0, 1.0]]), aggregate).tolist() == [0.0]

    def test_no_boxes_no_scores(self):
        assert region_scores(SCORES, TWO_BY_TWO, np.zeros((0, 4)), "sum").shape == (0,)
        assert region_scores(SCORES, TWO_BY_TWO, np.zeros((0, 4)), "peak").shape == (0,)

    @given(scored_grids(), partitions())
    def test_the_sums_over_a_partition_add_up_to_the_page(self, scored, parts):
        grid, scores = scored
        found = region_scores(scores, grid, parts, "sum")
        assert found.shape == (len(parts),)
        assert found.sum() == pytest.approx(scores.sum(dtype=np.float64), abs=1e-5)

    @given(scored_grids(), partitions())
    def test_the_mean_weighted_by_area_is_the_page_and_lies_between_the_means(self, scored, parts):
        grid, scores = scored
        areas = (parts[:, 2] - parts[:, 0]) * (parts[:, 3] - parts[:, 1])
        means = region_scores(scores, grid, parts, "mean")
        whole = region_scores(scores, grid, np.array([WHOLE]), "mean")
        assert (means * areas).sum() == pytest.approx(whole[0], abs=1e-4)
        roots = region_scores(scores, grid, parts, "sqrt_area")
        np.testing.assert_allclose(roots, means * np.sqrt(areas), atol=1e-5)

    @given(scored_grids(), partitions())
    def test_a_peak_is_never_over_the_best_token(self, scored, parts):
        grid, scores = scored
        peaks = region_scores(scores, grid, parts, "peak")
        assert (peaks <= max(float(scores.max()), 0.0) + 1e-6).all()

    def test_a_wrong_number_of_scores_is_refused(self):
        with pytest.raises(ValueError, match=r"3 scores.*4 visual tokens"):
            region_scores(SCORES[:3], TWO_BY_TWO, self.BOX, "sum")

    def test_a_box_off_the_page_is_refused(self):
        with pytest.raises(ValueError, match="box 1 "):
            region_scores(SCORES, TWO_BY_TWO, np.array([WHOLE, (1.0, 0.0, 2.0, 1.0)]), "sum")

    def test_an_unknown_aggregate_is_refused(self):
        with pytest.raises(ValueError, match=r"'median'.*sum, mean, sqrt_area, peak"):
            region_scores(SCORES, TWO_BY_TWO, self.BOX, "median")

    def test_boxes_of_another_shape_are_refused(self):
        with pytest.raises(ValueError, match=r"\(boxes, 4\)"):
            region_scores(SCORES, TWO_BY_TWO, np.zeros(4), "sum")


class TestHeatArray:
    def test_a_plain_grid_is_its_own_array(self):
        np.testing.assert_allclose(mass_array(SCORES, TWO_BY_TWO), [[0.1, 0.2], [0.3, 0.4]], rtol=1e-6)

    def test_overlapping_grids_add_up_cell_by_cell(self):
        grid = tiles_and_overview((1, 2), side=1)
        found = mass_array(np.array([0.2, 0.4, 0.6], dtype=np.float32), grid)
        np.testing.assert_allclose(found, [[0.2 + 0.3, 0.4 + 0.3]], rtol=1e-6)

    def test_another_shape_shares_tokens_out(self):
        np.testing.assert_allclose(mass_array(SCORES, TWO_BY_TWO, shape=(1, 4)), [[0.2, 0.2, 0.3, 0.3]], rtol=1e-6)

    @given(scored_grids(), st.tuples(st.integers(1, 7), st.integers(1, 7)) | st.none())
    @settings(max_examples=50)
    def test_nothing_is_lost(self, scored, shape):
        grid, scores = scored
        heat = mass_array(scores, grid, shape=shape)
        assert heat.shape == (shape or (grid.rows, grid.columns))
        assert heat.sum(dtype=np.float64) == pytest.approx(scores.sum(dtype=np.float64), abs=1e-5)

    def test_an_empty_shape_is_refused(self):
        with pytest.raises(ValueError, match="at least one row"):
            mass_array(SCORES, TWO_BY_TWO, shape=(0, 3))


class TestRegionFractions:
    def page(self, *boxes, size=(200.0, 100.0)):
        return Page(text="x", size=size, doc_id="a.pdf", index=2, regions=[Region(box) for box in boxes])

    def test_boxes_in_fractions_of_the_page(self):
        found = region_fractions(self.page((20, 10, 100, 50), (-5, 90, 400, 130)))
        np.testing.assert_allclose(found, [[0.1, 0.1, 0.5, 0.5], [0.0, 0.9, 1.0, 1.0]])

    def test_a_page_without_regions_has_none(self):
        assert region_fractions(self.page()).shape == (0, 4)

    def test_a_page_without_a_size_is_refused(self):
        with pytest.raises(PageError, match=r"page 3 of a\.pdf.*no size.*Page\(size="):
            region_fractions(self.page((0, 0, 1, 1), size=None))

    def test_boxes_in_other_units_are_refused(self):
        with pytest.raises(PageError, match=r"region 1 of page 3 of a\.pdf.*200 x 100.*same units") as caught:
            region_fractions(self.page((0, 0, 1, 1), (300, 10, 420, 60)))
        assert caught.value.source == "a.pdf"
        assert caught.value.page == 2
