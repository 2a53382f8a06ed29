from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mmrh_retriever.errors import HeadSetError
from mmrh_retriever.heads.sets import HeadScores, HeadScoresTable, HeadSet
from mmrh_retriever.research import head_analysis as analysis

positive_matrices = arrays.arrays(
    np.float64, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.floats(-1, 1, width=32)
).filter(lambda matrix: matrix.max() > 1e-3)


def scores_of(values, task="text", length=8, model="m"):
    return HeadScores(np.array(values), model, task, length)


class TestSparsity:
    @pytest.mark.parametrize(
        ("values", "mass", "share"),
        [
            ([[0.5, 0.3], [0.2, 0.0]], 0.5, 1 / 4),  # the best head holds exactly half
            ([[0.4, 0.3], [0.3, 0.0]], 0.5, 2 / 4),  # 0.4 is short of it, 0.7 is not
            ([[0.4, 0.3], [0.3, 0.0]], 0.8, 3 / 4),
            ([[0.2, -0.9], [-0.9, -0.9]], 0.5, 1 / 4),  # negative scores weigh nothing
            ([[0.1] * 14], 0.5, 7 / 14),  # although seven times 0.1 sum to less than half of fourteen
            ([[0.1] * 10], 0.7, 7 / 10),
            ([[0.3, math.nan, math.nan, 0.3]], 0.5, 1 / 4),  # the share is of all heads
            ([[0.3, 0.1]], 1.0, 2 / 2),
        ],
    )
    def test_by_hand(self, values, mass, share):
        assert analysis.sparsity(values, mass) == share

    def test_order_does_not_matter(self):
        assert analysis.sparsity([[0.0, 0.2, 0.3, 0.5]]) == analysis.sparsity([[0.5, 0.3, 0.2, 0.0]]) == 1 / 4

    @pytest.mark.parametrize("values", [[[0.0, -0.5]], [[math.nan]], np.zeros((0, 0)), [[math.inf]]])
    def test_no_mass(self, values):
        with pytest.raises(HeadSetError, match="no mass"):
            analysis.sparsity(values)

    @pytest.mark.parametrize("mass", [0.0, 1.1, math.nan])
    def test_mass_is_a_share(self, mass):
        with pytest.raises(HeadSetError, match="mass to cover"):
            analysis.sparsity([[0.5]], mass)

    @settings(deadline=None)
    @given(positive_matrices, st.floats(0.01, 1.0))
    def test_is_where_the_curve_crosses(self, matrix, mass):
        shares, masses = analysis.mass_curve(matrix)
        assert shares[0] == masses[0] == 0.0
        assert shares[-1] == 1.0
        assert masses[-1] == pytest.approx(1.0)
        assert (np.diff(masses) >= 0).all()
        assert (np.diff(masses, 2) <= 1e-12).all(), "each head adds no more than the one before"
        at = round(analysis.sparsity(matrix, mass) * matrix.size)
        assert masses[at] >= mass - 1e-9
        assert masses[at - 1] < mass


TABLE = HeadScoresTable(
    [
        scores_of([[0.9, 0.8, 0.1, 0.0]], "text", 8),
        scores_of([[0.9, 0.0, 0.1, 0.8]], "text", 16),
        scores_of([[0.0, 0.0, 0.9, 0.8]], "image", 8),
        scores_of([[0.0, 0.9, 0.0, 0.8]], "image", 16),
    ]
)


class TestOverlaps:
    def test_tasks(self):
        matrix = analysis.task_overlap(TABLE, 16, share=0.5)
        assert matrix.labels == ("text", "image")
        assert matrix.values.tolist() == [[1.0, 0.5], [0.5, 1.0]]
        assert matrix.off_diagonal_mean() == 0.5
        assert analysis.task_overlap(TABLE, 8, share=0.5).off_diagonal_mean() == 0.0

    def test_tasks_that_were_not_scored_at_a_length_are_left_out(self):
        table = HeadScoresTable([scores_of([[0.1, 0.2]], "text", 8), scores_of([[0.1, 0.2]], "image", 16)])
        assert analysis.task_overlap(table, 16, share=0.5).labels == ("image",)
        with pytest.raises(HeadSetError, match="at least one set"):
            analysis.task_overlap(table, 32)

    def test_lengths(self):
        matrix = analysis.length_overlap(TABLE, "text", share=0.5)
        assert matrix.labels == ("8", "16")
        assert matrix.values.tolist() == [[1.0, 0.5], [0.5, 1.0]]

    def test_models(self):
        copy = HeadScoresTable([scores_of([[0.9, 0.8, 0.1, 0.0]], "text", 16, model="copy")])
        assert analysis.model_overlap(TABLE, copy, share=0.5) == {("text", 16): 0.5}
        with pytest.raises(HeadSetError, match="grids are equal"):
            analysis.model_overlap(TABLE, HeadScoresTable([scores_of([[0.1]])]))
        with pytest.raises(HeadSetError, match="in common"):
            analysis.model_overlap(TABLE, HeadScoresTable([scores_of([[0.1] * 4], "video")]))

    def test_chance(self):
        assert analysis.chance_overlap(TABLE, share=0.5) == 2 / 4
        values = [[0.1, 0.2], [0.3, math.nan], [0.5, 0.6]]
        some = HeadScoresTable([HeadScores(np.array(values), "m", "text", 8, selectable_layers=(0, 1))])
        assert analysis.chance_overlap(some, share=0.3) == 2 / 3
        broken = HeadScores.from_released([[0.1, 0.2, 9.0, 0.3]], model_id="m", task="text", context_length=8)
        assert analysis.chance_overlap(HeadScoresTable([broken]), share=0.25) == 1 / 3

    def test_one_set_alone(self):
        matrix = analysis.overlap_matrix([HeadSet.parse("0-0")], ["a"])
        assert matrix.values.tolist() == [[1.0]]
        assert matrix.off_diagonal_mean() == 1.0

    def test_labels_must_fit(self):
        with pytest.raises(HeadSetError, match="one label per head set"):
            analysis.overlap_matrix([HeadSet.parse("0-0")], [])
        with pytest.raises(HeadSetError, match="at least one set"):
            analysis.overlap_matrix([], [])


def test_layer_spread():
    heads = HeadSet.parse("0-1 2-0 2-3")
    assert analysis.layer_spread(heads, 4).tolist() == [1, 0, 2, 0]
    assert analysis.layer_spread(HeadSet(heads.heads, n_layers=3, n_heads=4)).tolist() == [1, 0, 2]
    with pytest.raises(HeadSetError, match="layer 2; the number of layers is 2"):
        analysis.layer_spread(heads, 2)
    with pytest.raises(HeadSetError, match="None"):
        analysis.layer_spread(heads)


class TestStability:
    def test_examples_that_agree(self):
        same = np.tile(np.linspace(0, 1, 20).reshape(4, 5), (6, 1, 1))
        found = analysis.stability(same, share=0.2)
        assert found.mean == min(found.overlaps) == 1.0
        assert found.set_size == 4
        assert len(found.overlaps) == 10

    def test_subsets_are_disjoint(self):
        # Example i has a score in head i alone. Disjoint halves of two can't share a best head.
        each_its_own = np.eye(4).reshape(4, 2, 2)
        found = analysis.stability(each_its_own, share=0.5, repeats=20)
        assert found.overlaps == (0.0,) * 20

    def test_three_parts_give_three_pairs(self):
        assert len(analysis.stability(np.ones((7, 2, 2)), n_subsets=3, repeats=4).overlaps) == 12

    def test_noise_overlaps_by_chance(self):
        noise = np.random.default_rng(0).uniform(-1, 1, size=(20, 40, 25))
        assert analysis.stability(noise, share=0.1, repeats=20).mean == pytest.approx(0.1, abs=0.03)

    def test_only_selectable_layers(self):
        found = analysis.stability(np.ones((2, 3, 2)), share=0.3, selectable_layers=(2,))
        assert found.set_size == 2

    @pytest.mark.parametrize(
        ("shape", "subsets", "repeats"), [((4, 2), 2, 1), ((1, 2, 2), 2, 1), ((4, 2, 2), 1, 1), ((4, 2, 2), 2, 0)]
    )
    def test_too_few_examples_are_refused(self, shape, subsets, repeats):
        with pytest.raises(HeadSetError, match="at least two subsets"):
            analysis.stability(np.ones(shape), n_subsets=subsets, repeats=repeats)
