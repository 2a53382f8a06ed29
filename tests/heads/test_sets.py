"""Head sets: what they hold, whether they fit a model, and their files."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrh_retriever.errors import DataError, HeadSetError
from mmrh_retriever.heads import HeadId, HeadScoresTable, HeadSet, load_head_set
from mmrh_retriever.heads.sets import same_model
from tests.heads.made_scores import GRID, names, score_matrices, scores_of


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
