from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrh_retriever.errors import DataError, HeadSetError
from mmrh_retriever.heads import HeadId, HeadScores, HeadScoresTable, HeadSet, load_head_set
from mmrh_retriever.heads.model_names import same_model


def scores_of(values, task="text", length=8192, model="org/model", **extra):
    return HeadScores(np.array(values, dtype=np.float32), model, task, length, **extra)


def names(heads):
    return [str(head) for head in heads]


GRID = [[0.1, 0.4, -0.2], [0.4, 0.0, 0.3]]  # best first: 0-1, 1-0 (tie), 1-2, 0-0, 1-1, 0-2


@st.composite
def score_matrices(draw):
    n_layers, n_heads = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    # Few distinct values, so that ties are common.
    cell = st.sampled_from([-1.0, -0.5, -0.0, 0.0, 0.125, 0.5, 1.0])
    return np.array(
        draw(st.lists(st.lists(cell, min_size=n_heads, max_size=n_heads), min_size=n_layers, max_size=n_layers))
    )


class TestHeadId:
    def test_text_form_goes_both_ways(self):
        assert str(HeadId(21, 10)) == "21-10"
        assert f"{HeadId(21, 10)}" == "21-10"
        assert HeadId.parse(" 21-10\n") == HeadId(21, 10)

    @pytest.mark.parametrize("text", ["", "21", "21.10", "21-", "-1-2", "21-10-3", "a-b", "1e1-2", "²-1", "21 - 10"])
    def test_other_text_is_refused_and_quoted(self, text):
        with pytest.raises(HeadSetError, match="such as '21-10'") as caught:
            HeadId.parse(text)
        assert repr(text) in str(caught.value)


class TestHeadScores:
    def test_values_are_a_read_only_copy(self):
        given_values = np.zeros((2, 3), dtype=np.float64)
        scores = HeadScores(given_values, "m", "text", 8)
        given_values[0, 0] = 1.0
        assert scores.values.dtype == np.float32
        assert scores.values[0, 0] == 0.0
        with pytest.raises(ValueError, match="read-only"):
            scores.values[0, 0] = 0.5
        assert (scores.n_layers, scores.n_heads) == (2, 3)

    @pytest.mark.parametrize("value", [1.01, -1.01, math.inf, -math.inf])
    def test_impossible_scores_are_refused_with_the_head(self, value):
        with pytest.raises(HeadSetError, match="head 1-2"):
            scores_of([[0, 0, 0], [0, 0, value]])

    def test_nan_is_unmeasured(self):
        scores = scores_of([[0.5, math.nan]])
        assert math.isnan(scores[HeadId(0, 1)])
        assert scores.selectable().tolist() == [[True, False]]

    @pytest.mark.parametrize("values", [[0.1, 0.2], np.zeros((0, 3)), np.zeros((1, 2, 3)), [[1, 2], [3]], [["x"]]])
    def test_only_a_matrix_will_do(self, values):
        with pytest.raises(HeadSetError, match=r"layers|matrix"):
            HeadScores(values, "m", "text", 8)

    @pytest.mark.parametrize("name", ["spread", "recall_at_1"])
    def test_extras_have_the_shape_of_the_scores(self, name):
        assert getattr(scores_of(GRID, **{name: np.zeros((2, 3))}), name).dtype == np.float32
        with pytest.raises(HeadSetError, match=name):
            scores_of(GRID, **{name: np.zeros((3, 2))})
        with pytest.raises(HeadSetError, match=name):
            scores_of(GRID, **{name: np.full((2, 3), -0.5)})

    def test_no_such_head(self):
        with pytest.raises(HeadSetError, match="2-0"):
            scores_of(GRID)[HeadId(2, 0)]
        with pytest.raises(HeadSetError, match="-1-0"):
            scores_of(GRID)[HeadId(-1, 0)]

    def test_released_scores_beyond_one_are_noted_and_dropped(self):
        scores = HeadScores.from_released(
            [[0.2, 2.28125], [-11.25, 1.0]], model_id="m", task="text", context_length=8192
        )
        assert np.isnan(scores.values).tolist() == [[False, True], [True, False]]
        assert scores.invalid == ((HeadId(0, 1), 2.28125), (HeadId(1, 0), -11.25))
        assert scores.invalid_heads == (HeadId(0, 1), HeadId(1, 0))
        assert scores.as_given().tolist() == [[pytest.approx(0.2), 2.28125], [-11.25, 1.0]]
        assert names(HeadSet.top(scores, count=2)) == ["1-1", "0-0"]
        with pytest.raises(HeadSetError, match="Ask for 1 to 2"):
            HeadSet.top(scores, count=3)

    def test_a_head_with_a_score_is_not_invalid(self):
        with pytest.raises(HeadSetError, match="0-0"):
            scores_of(GRID, invalid=((HeadId(0, 0), 2.0),))
        with pytest.raises(HeadSetError, match="9-9"):
            scores_of(GRID, invalid=((HeadId(9, 9), 2.0),))

    @pytest.mark.parametrize("layers", [(), (2,), (-1,)])
    def test_selectable_layers_must_exist(self, layers):
        with pytest.raises(HeadSetError, match="Selectable layers"):
            scores_of(GRID, selectable_layers=layers)


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

    def test_five_per_cent_unless_told(self):
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


class TestHeadSet:
    def test_is_a_value(self):
        one, other = HeadSet.parse("1-2, 0-1"), HeadSet.parse(["1-2", "0-1"])
        assert one == other
        assert hash(one) == hash(other)
        assert one != HeadSet.parse("0-1 1-2"), "order is part of it"
        with pytest.raises(AttributeError):
            one.heads = ()
        assert HeadId(1, 2) in one
        assert HeadId(2, 1) not in one

    def test_slices_keep_heads_and_scores_together(self):
        top = HeadSet.top(scores_of(GRID), count=4)
        assert names(top[:2]) == ["0-1", "1-0"]
        assert top[:2].scores == top.scores[:2]
        assert top[:2].model_id == "org/model"
        assert top[2] == HeadId(1, 2)
        with pytest.raises(HeadSetError, match="at least one"):
            top[4:]

    def test_layers(self):
        heads = HeadSet.parse("5-3 2-7 5-1")
        assert heads.deepest_layer == 5
        assert heads.by_layer() == {2: (7,), 5: (1, 3)}
        assert list(heads.by_layer()) == [2, 5]
        assert names(heads.up_to_layer(4)) == ["2-7"]
        with pytest.raises(HeadSetError, match="first is in layer 2"):
            heads.up_to_layer(1)

    def test_all_heads(self):
        assert names(HeadSet.all_heads(2, 2)) == ["0-0", "0-1", "1-0", "1-1"]
        assert names(HeadSet.all_heads(3, 2, layers=[2, 0])) == ["0-0", "0-1", "2-0", "2-1"]
        with pytest.raises(HeadSetError, match="3-0"):
            HeadSet.all_heads(3, 2, layers=[3])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"heads": ()}, "at least one"),
            ({"heads": (HeadId(0, 1), HeadId(0, 1))}, "once.*0-1"),
            ({"heads": (HeadId(4, 0),), "n_layers": 4, "n_heads": 8}, "4-0"),
            ({"heads": (HeadId(0, 8),), "n_layers": 4, "n_heads": 8}, "0-8"),
            ({"heads": (HeadId(0, -1),)}, "0--1"),
            ({"heads": (HeadId(0, 1),), "scores": (0.1, 0.2)}, "1 heads, got 2"),
            ({"heads": (HeadId(0, 1),), "scores": (math.nan,)}, "finite"),
            ({"heads": (HeadId(0, 1), HeadId(0, 2)), "scores": (0.1, 0.2)}, "must not rise"),
        ],
    )
    def test_what_can_not_be_a_set(self, arguments, message):
        with pytest.raises(HeadSetError, match=message):
            HeadSet(**arguments)


class TestUnionAndOverlap:
    def test_union_is_ordered_by_the_best_score(self):
        text = HeadSet.top(scores_of(GRID, "text"), count=2)  # 0-1 and 1-0 at 0.4
        image = HeadSet.top(scores_of([[0.0, 0.2, 0.9], [0.5, 0, 0]], "image"), count=3)  # 0-2, 1-0, 0-1
        union = HeadSet.union([text, image])
        assert names(union) == ["0-2", "1-0", "0-1"]
        assert union.scores == pytest.approx((0.9, 0.5, 0.4))
        assert union.tasks == ("text", "image")
        assert union.context_length == 8192

    def test_union_without_scores_goes_by_the_best_place(self):
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


class TestValidateFor:
    heads = HeadSet.parse("3-1 7-0 2-5", n_layers=8, n_heads=6)

    def test_fits(self):
        self.heads.validate_for(8, 6)
        self.heads.validate_for(8, 6, selectable_layers=[2, 3, 7])
        HeadSet.parse("3-1").validate_for(4, 2, model_id="any/thing")

    def test_heads_out_of_range_are_named(self):
        with pytest.raises(HeadSetError, match=r"7-0, 2-5.*layers 0 to 5 and query heads 0 to 3"):
            HeadSet.parse("3-1 7-0 2-5").validate_for(6, 4)

    def test_another_size(self):
        with pytest.raises(HeadSetError, match=r"8 layers x 6 heads.*has 9 x 6"):
            self.heads.validate_for(9, 6)

    def test_heads_of_local_layers_are_named(self):
        with pytest.raises(HeadSetError, match=r"3-1, 2-5\. Only layers \[7\]"):
            self.heads.validate_for(8, 6, selectable_layers=[7])

    def test_another_model(self):
        heads = HeadSet.all_heads(2, 2, model_id="Qwen/Qwen3-VL-8B-Instruct")
        heads.validate_for(2, 2, model_id="unsloth/Qwen3-VL-8B-Instruct-bnb-4bit")
        heads.validate_for(2, 2, model_id="/models/qwen3-vl-8b-instruct/")
        with pytest.raises(HeadSetError, match=r"detected on Qwen/Qwen3-VL-8B-Instruct.*mmrh detect"):
            heads.validate_for(2, 2, model_id="Qwen/Qwen3-VL-8B-Thinking")

    def test_same_model_compares_whole_words(self):
        assert same_model("a/Qwen3-VL-8B", "b/qwen3_vl-8b-gptq")
        assert not same_model("a/Qwen3-VL-8B", "a/Qwen3-VL-8B2")
        assert not same_model("a/gemma-3-2b", "a/gemma-3-12b")


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


class TestSetFiles:
    @settings(max_examples=30, deadline=None)
    @given(matrix=score_matrices(), data=st.data())
    def test_round_trip(self, tmp_path_factory, matrix, data):
        count = data.draw(st.integers(1, matrix.size))
        path = tmp_path_factory.mktemp("sets") / "heads.json"
        heads = HeadSet.top(scores_of(matrix, source="δ"), count=count)
        heads.save(path)
        assert HeadSet.load(path) == heads
        assert load_head_set(path) == heads
        bare = HeadSet(heads.heads)
        bare.save(path)
        assert HeadSet.load(path) == bare

    def test_written_whole_or_not_at_all(self, tmp_path, monkeypatch):
        path = tmp_path / "heads.json"
        HeadSet.parse("0-0").save(path)
        before = path.read_text()

        def no_space(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", no_space)
        with pytest.raises(DataError, match="No space left"):
            HeadSet.parse("0-1").save(path)
        assert path.read_text() == before
        assert [file.name for file in tmp_path.iterdir()] == ["heads.json"]

    def test_missing_folder(self, tmp_path):
        with pytest.raises(DataError, match="folder exists"):
            HeadSet.parse("0-0").save(tmp_path / "none" / "heads.json")

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"heads": []}, DataError, "heads"),
            ({"heads": ["0.0"]}, HeadSetError, "'0.0' does not name a head"),
            ({"heads": ["9-0"]}, HeadSetError, "9-0.*layers 0 to 1"),
            ({"scores": [0.5, 0.5]}, HeadSetError, "1 heads, got 2"),
            ({"scores": [math.nan]}, DataError, "finite"),
            ({"scores": ["0.5"]}, DataError, "scores.0"),
            ({"version": 2}, DataError, "version"),
            ({"n_layers": 0}, DataError, "n_layers"),
            ({"extra": 1}, DataError, "extra"),
            ({"format": "mmrh-head-scores"}, DataError, "HeadScoresTable.load"),
        ],
    )
    def test_malformed(self, tmp_path, change, error, message):
        content = {"format": "mmrh-head-set", "version": 1, "heads": ["0-0"], "n_layers": 2, "n_heads": 2}
        path = tmp_path / "heads.json"
        path.write_text(json.dumps(content))
        assert HeadSet.load(path).heads == (HeadId(0, 0),)
        path.write_text(json.dumps(content | change))
        with pytest.raises(error, match=message) as caught:
            HeadSet.load(path)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'"text"'])
    def test_not_a_json_object(self, tmp_path, content):
        path = tmp_path / "heads.json"
        path.write_bytes(content)
        for load in (HeadSet.load, HeadScoresTable.load, load_head_set):
            with pytest.raises(DataError, match=r"heads\.json"):
                load(path)

    def test_damaged_gzip_and_missing_file(self, tmp_path):
        path = tmp_path / "heads.json.gz"
        with pytest.raises(DataError, match="no such file"):
            HeadSet.load(path)
        path.write_bytes(b"\x1f\x8b not really")
        with pytest.raises(DataError, match="can't be read"):
            HeadSet.load(path)
        HeadSet.parse("0-0").save(path)
        whole = path.read_bytes()
        path.write_bytes(whole[:-12])
        with pytest.raises(DataError, match="can't be read"):
            HeadSet.load(path)


def released(values, **changes):
    content = {"model": "org/model", "n_layers": 2, "n_heads": 3, "scores": {"text": {"8192": values}}}
    return content | changes


class TestScoresTable:
    table = HeadScoresTable(
        [scores_of(GRID, "text", 16), scores_of(GRID, "image", 8), scores_of(np.negative(GRID), "text", 8)]
    )

    def test_is_a_mapping_of_conditions(self):
        assert list(self.table) == [("text", 8), ("text", 16), ("image", 8)]
        assert self.table.tasks == ("text", "image")
        assert self.table.context_lengths == (8, 16)
        assert (self.table.model_id, self.table.n_layers, self.table.n_heads) == ("org/model", 2, 3)
        assert self.table["text", 16] is self.table.at("text", 16)
        assert ("image", 16) not in self.table
        with pytest.raises(HeadSetError, match=r"'image' at 16.*text, image.*8, 16"):
            self.table.at("image", 16)

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ([], "at least one"),
            ([scores_of(GRID), scores_of(GRID)], "twice"),
            ([scores_of(GRID), scores_of(GRID, "image", model="org/other")], "one model"),
            ([scores_of(GRID), scores_of([[0.0]], "image")], "one model"),
            ([scores_of(GRID), scores_of(GRID, "image", selectable_layers=(1,))], "selectable"),
        ],
    )
    def test_what_does_not_go_together(self, entries, message):
        with pytest.raises(HeadSetError, match=message):
            HeadScoresTable(entries)

    def test_heads_of_all_tasks(self):
        heads = HeadSet.of_tasks(self.table, context_length=8, count=1)
        assert names(heads) == ["0-1", "0-2"]  # image 0.4, text (negated) 0.2
        assert names(HeadSet.of_tasks(self.table, ["text"], count=2)) == ["0-1", "1-0"]
        with pytest.raises(HeadSetError, match="'image' at 16"):
            HeadSet.of_tasks(self.table)

    def test_a_head_that_is_impossible_once_is_never_selected(self):
        def given_scores(values, task):
            return HeadScores.from_released(values, model_id="m", task=task, context_length=8)

        table = HeadScoresTable([given_scores([[0.9, 0.2, 0.1]], "text"), given_scores([[1.1, 0.3, 0.2]], "image")])
        assert names(table.invalid_heads) == ["0-0"]
        assert names(HeadSet.of_tasks(table, ["text"], count=1)) == ["0-1"]
        assert names(HeadSet.top(table["text", 8], count=1)) == ["0-0"]
        assert names(HeadSet.top(table["text", 8], count=1, exclude=[HeadId(0, 0), HeadId(0, 1)])) == ["0-2"]

    @settings(max_examples=30, deadline=None)
    @given(matrix=score_matrices(), packed=st.booleans())
    def test_round_trip(self, tmp_path_factory, matrix, packed):
        matrix = matrix * 0.3  # decimals that float32 holds only roughly
        matrix[0, 0] = math.nan
        entry = scores_of(
            matrix,
            n_examples=20,
            source="made up",
            spread=np.abs(matrix),
            recall_at_1=np.abs(matrix),
            invalid=((HeadId(0, 0), 2.28125),),
            selectable_layers=(0,),
        )
        path = tmp_path_factory.mktemp("scores") / ("scores.json.gz" if packed else "scores.json")
        HeadScoresTable([entry, scores_of(matrix, "image", selectable_layers=(0,))]).save(path)
        back = HeadScoresTable.load(path)
        assert list(back) == [("text", 8192), ("image", 8192)]
        found = back["text", 8192]
        for name in ("values", "spread", "recall_at_1"):
            np.testing.assert_array_equal(getattr(found, name), getattr(entry, name))
        for name in ("model_id", "n_examples", "source", "invalid", "selectable_layers"):
            assert getattr(found, name) == getattr(entry, name)
        assert back["image", 8192].spread is None

    def test_reads_a_release(self, tmp_path):
        path = tmp_path / "released.json"
        path.write_text(json.dumps(released([[0.1, 2.28, None], [0.4, -1.5, 0.3]])))
        scores = HeadScoresTable.load(path)["text", 8192]
        assert names(HeadSet.top(scores, count=3)) == ["1-0", "1-2", "0-0"]
        assert names(scores.invalid_heads) == ["0-1", "1-1"]
        assert names(load_head_set(path, share=0.5)) == ["1-0", "1-2", "0-0"]
        assert names(load_head_set(path, share=0.1, max_layer=0)) == ["0-0"]

    @pytest.mark.parametrize(
        ("content", "error", "message"),
        [
            (released([[0.1, 0.2, 0.3]]), HeadSetError, "1 rows of 3 values. Expected 2 layers x 3"),
            (released([[0.1, 0.2], [0.1, 0.2, 0.3]]), HeadSetError, "rows of 2, 3 values"),
            (released([[0.1, 0.2, math.nan], [0, 0, 0]]), DataError, r"scores\.text\.8192\.0\.2.*finite"),
            (released([[0.1, 0.2, math.inf], [0, 0, 0]]), DataError, "finite"),
            (released([[0.1, 0.2, "x"], [0, 0, 0]]), DataError, "'x'"),
            (released(GRID, n_layers=0), DataError, "n_layers"),
            (released(GRID, scores={}), DataError, "scores"),
            (released(GRID, scores={"text": {"8k": GRID}}), HeadSetError, "'8k'.*tokens"),
            (released(GRID, format="mmrh-head-set"), DataError, "mmrh-head-scores"),
            ({"model": "m"}, DataError, "n_layers"),
        ],
    )
    def test_malformed(self, tmp_path, content, error, message):
        path = tmp_path / "scores.json"
        path.write_text(json.dumps(content))
        with pytest.raises(error, match=message) as caught:
            HeadScoresTable.load(path)
        assert str(path) in str(caught.value)

    def test_our_own_files_hold_nothing_impossible(self, tmp_path):
        path = tmp_path / "scores.json"
        self.table.save(path)
        content = json.loads(path.read_text())
        content["scores"][0]["values"][1][2] = 1.5
        path.write_text(json.dumps(content))
        with pytest.raises(HeadSetError, match=r"head 1-2 is 1\.5"):
            HeadScoresTable.load(path)

    def test_load_head_set_cuts_a_set_to_the_depth(self, tmp_path):
        path = tmp_path / "heads.json"
        HeadSet.parse("5-0 2-1 9-9").save(path)
        assert names(load_head_set(path, max_layer=5)) == ["5-0", "2-1"]
        with pytest.raises(HeadSetError, match="no share"):
            load_head_set(path, share=0.1)
