"""Heads, their scores, and tables of scores by task and context length."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrh_retriever.errors import DataError, HeadSetError
from mmrh_retriever.heads import HeadId, HeadScores, HeadScoresTable, HeadSet, load_head_set
from tests.heads.made_scores import GRID, names, score_matrices, scores_of


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
