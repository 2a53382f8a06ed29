"""Which heads are chosen: the best, the union of tasks' best, or random ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrh_retriever.errors import HeadSetError
from mmrh_retriever.heads import HeadSet
from tests.heads.made_scores import GRID, names, score_matrices, scores_of


class TestTop:
    def test_best_first_with_ties_by_layer_and_head(self):
        top = HeadSet.top(scores_of(GRID, source="here"), count=4)
        assert names(top) == ["0-1", "1-0", "1-2", "0-0"]
        assert top.scores == pytest.approx((0.4, 0.4, 0.3, 0.1))
        assert (top.model_id, top.n_layers, top.n_heads) == ("org/model", 2, 3)
        assert (top.tasks, top.context_length, top.source) == (("text",), 8192, "here")

    @pytest.mark.parametrize(
        ("shape", "share", "count"),
        [
            ((36, 32), 0.05, 58),  # 57.6, the paper's count for Qwen3-VL-8B
            ((10, 10), 0.07, 7),  # exactly 7, though 0.07 * 100 is 7.000000000000001 in floating point
            ((28, 28), 0.05, 40),
            ((64, 64), 0.05, 205),
            ((10, 10), 1.0, 100),
            ((2, 2), 0.0001, 1),
        ],
    )
    def test_share_is_of_all_heads_rounded_up(self, shape, share, count):
        assert len(HeadSet.top(scores_of(np.zeros(shape)), share)) == count

    def test_five_per_cent_by_default(self):
        assert len(HeadSet.top(scores_of(np.zeros((36, 32))))) == 58

    def test_share_counts_unmeasured_heads_too(self):
        values = np.full((10, 10), np.nan)
        values[3] = 0.5
        assert len(HeadSet.top(scores_of(values), 0.05)) == 5

    def test_depth_budget(self):
        assert names(HeadSet.top(scores_of(GRID), count=2, max_layer=0)) == ["0-1", "0-0"]
        with pytest.raises(HeadSetError, match=r"up to layer 0.*raise max_layer"):
            HeadSet.top(scores_of(GRID), count=4, max_layer=0)
        with pytest.raises(HeadSetError, match="0 of its 6 heads"):
            HeadSet.top(scores_of(GRID), count=1, max_layer=-1)

    def test_only_selectable_layers(self):
        assert names(HeadSet.top(scores_of(GRID, selectable_layers=(1,)), count=3)) == ["1-0", "1-2", "1-1"]

    @pytest.mark.parametrize("share", [0.0, -0.1, 1.1, math.nan])
    def test_share_must_be_a_share(self, share):
        with pytest.raises(HeadSetError, match="share of heads"):
            HeadSet.top(scores_of(GRID), share)

    def test_share_or_count(self):
        with pytest.raises(HeadSetError, match="not both"):
            HeadSet.top(scores_of(GRID), 0.1, 2)
        with pytest.raises(HeadSetError, match="0 heads asked"):
            HeadSet.top(scores_of(GRID), count=0)

    @settings(deadline=None)
    @given(score_matrices(), st.data())
    def test_nothing_left_out_beats_what_was_taken(self, matrix, data):
        count = data.draw(st.integers(1, matrix.size))
        max_layer = data.draw(st.none() | st.integers(0, matrix.shape[0] - 1))
        budget = matrix.size if max_layer is None else (max_layer + 1) * matrix.shape[1]
        count = min(count, budget)
        top = HeadSet.top(scores_of(matrix), count=count, max_layer=max_layer)
        # An independent statement of the same: sort every head by score, then name.
        everyone = sorted(
            (-float(matrix[layer, head]), layer, head)
            for layer in range(matrix.shape[0])
            for head in range(matrix.shape[1])
            if max_layer is None or layer <= max_layer
        )
        assert [(-score, layer, head) for (layer, head), score in zip(top, top.scores, strict=True)] == everyone[:count]
        if max_layer is not None:
            assert top.deepest_layer <= max_layer


class TestUnionAndOverlap:
    def test_union_is_ordered_by_the_best_score(self):
        text = HeadSet.top(scores_of(GRID, "text"), count=2)  # 0-1 and 1-0 at 0.4
        image = HeadSet.top(scores_of([[0.0, 0.2, 0.9], [0.5, 0, 0]], "image"), count=3)  # 0-2, 1-0, 0-1
        union = HeadSet.union([text, image])
        assert names(union) == ["0-2", "1-0", "0-1"]
        assert union.scores == pytest.approx((0.9, 0.5, 0.4))
        assert union.tasks == ("text", "image")
        assert union.context_length == 8192

    def test_union_without_scores_goes_by_the_best_rank(self):
        union = HeadSet.union([HeadSet.parse("0-1 0-2"), HeadSet.parse("0-0 0-2 0-1")])
        assert names(union) == ["0-0", "0-1", "0-2"]
        assert union.scores is None

    def test_union_of_lengths_has_no_single_length(self):
        sets = [HeadSet.top(scores_of(GRID, length=length), count=1) for length in (8, 16)]
        assert HeadSet.union(sets).context_length is None

    def test_union_refuses_nothing_and_strangers(self):
        with pytest.raises(HeadSetError, match="at least one"):
            HeadSet.union([])
        with pytest.raises(HeadSetError, match="different size"):
            HeadSet.union([HeadSet.all_heads(2, 2), HeadSet.all_heads(2, 3)])
        with pytest.raises(HeadSetError, match="different models"):
            HeadSet.union([HeadSet.all_heads(2, 2, model_id="a/x"), HeadSet.all_heads(2, 2, model_id="a/y")])

    def test_overlap_by_hand(self):
        one, other = HeadSet.parse("0-0 0-1 0-2 0-3"), HeadSet.parse("0-3 1-0 0-1 1-1")
        assert one.overlap(other) == 0.5
        with pytest.raises(HeadSetError, match="4 and 3"):
            one.overlap(other[:3])

    @settings(deadline=None)
    @given(score_matrices(), st.randoms(use_true_random=False), st.data())
    def test_laws(self, matrix, random, data):
        count = data.draw(st.integers(1, matrix.size))
        shuffled = matrix.ravel().tolist()
        random.shuffle(shuffled)
        one = HeadSet.top(scores_of(matrix, "a"), count=count)
        other = HeadSet.top(scores_of(np.reshape(shuffled, matrix.shape), "b"), count=count)
        union = HeadSet.union([one, other])
        assert set(union) == set(one) | set(other)
        assert HeadSet.union([other, one]).heads == union.heads
        assert set(HeadSet.union([one, one])) == set(one)
        assert one.overlap(other) == other.overlap(one)
        assert one.overlap(one) == 1.0
        assert len(union) == pytest.approx(2 * count - count * one.overlap(other))


class TestRandomControls:
    heads = HeadSet.parse("0-0 0-1 0-2 3-4 2-2", n_layers=4, n_heads=6)

    def test_as_many_others_reproducibly(self):
        control = self.heads.random_like(seed=3)
        assert len(control) == 5
        assert not set(control) & set(self.heads)
        assert control == self.heads.random_like(seed=3)
        assert control != self.heads.random_like(seed=4)
        assert control.scores is None
        control.validate_for(4, 6)

    def test_from_some_layers_and_another_count(self):
        control = self.heads.random_like(7, seed=1, layers=[2, 3])
        assert len(control) == 7
        assert {head.layer for head in control} <= {2, 3}

    def test_every_other_head_can_be_drawn(self):
        assert set(self.heads.random_like(19)) | set(self.heads) == set(HeadSet.all_heads(4, 6))
        with pytest.raises(HeadSetError, match="20 random heads asked of the model, 19"):
            self.heads.random_like(20)
        assert len(self.heads.random_like(24, disjoint=False)) == 24

    def test_same_layers(self):
        control = self.heads.random_same_layers(seed=2)
        assert {layer: len(heads) for layer, heads in control.by_layer().items()} == {0: 3, 2: 1, 3: 1}
        assert not set(control) & set(self.heads)

    def test_crowded_layer(self):
        crowded = HeadSet.parse("0-0 0-1", n_layers=2, n_heads=3)
        with pytest.raises(HeadSetError, match="2 random heads asked of layer 0, 1"):
            crowded.random_same_layers()
        assert len(crowded.random_same_layers(disjoint=False)) == 2

    def test_size_must_be_known(self):
        with pytest.raises(HeadSetError, match="n_layers and n_heads"):
            HeadSet.parse("0-0").random_like()

    def test_draws_are_uniform(self):
        one = HeadSet.parse("0-0", n_layers=2, n_heads=2)
        counts = {"0-1": 0, "1-0": 0, "1-1": 0}
        for seed in range(300):
            counts[str(one.random_like(seed=seed)[0])] += 1
        assert min(counts.values()) > 70  # 100 expected, standard deviation 8
