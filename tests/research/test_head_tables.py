"""What is said of head scores and of bare head sets: figures by hand, and the same in tables."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from mmrh_retriever.errors import DataError, HeadSetError
from mmrh_retriever.heads.sets import HeadScores, HeadScoresTable, HeadSet
from mmrh_retriever.research.head_tables import (
    head_set_summary,
    head_set_tables,
    head_summary,
    head_tables,
    heads_from,
    length_name,
    scores_from,
)
from mmrh_retriever.runs.tables import print_tables
from tests.research.small_scores import SMALL, scores_of


def text_of(tables):
    console = Console(width=160, record=True, file=io.StringIO())
    print_tables(tables, console)
    return console.export_text()


def cells_of(tables):
    return [[cell.text for cell in row] for table in tables for row in table.rows]


class TestSource:
    def test_file_or_name(self, tmp_path):
        SMALL.save(tmp_path / "scores.json")
        assert scores_from(tmp_path / "scores.json").model_id == "org/model"
        assert scores_from("Qwen3-VL-8B-Instruct").model_id == "Qwen/Qwen3-VL-8B-Instruct"
        with pytest.raises(DataError, match="no such file"):
            scores_from(tmp_path / "missing.json")
        with pytest.raises(HeadSetError, match="Published are"):
            scores_from("org/unknown")


class TestSummary:
    summary = head_summary(SMALL, share=1 / 3, top_n=2)

    def test_is_plain_data(self):
        assert json.loads(json.dumps(self.summary, allow_nan=False)) == self.summary

    def test_model(self):
        assert self.summary["model"] == "org/model"
        assert self.summary["source"] == "by hand"
        assert (self.summary["n_layers"], self.summary["n_heads"], self.summary["heads_per_task"]) == (3, 2, 2)
        assert (self.summary["tasks"], self.summary["context_lengths"]) == (["text", "image"], [8192, 16384])
        assert (self.summary["selectable_layers"], self.summary["invalid_heads"]) == (None, [])

    def test_sparsity_by_hand(self):
        # text at 8K: 0.8 of 1.2; at 16K 0.8 is exactly half of 1.6; image: 0.6 of 1.2.
        assert self.summary["sparsity"] == {
            "text": {"8192": 0.166667, "16384": 0.166667, "mean": 0.166667},
            "image": {"16384": 0.166667, "mean": 0.166667},
        }
        assert self.summary["sparsity_as_given"] == self.summary["sparsity"]

    def test_overlaps_by_hand(self):
        # Best two: text 8K 0-0 0-1, text 16K 0-0 1-1, image 16K 2-0 1-0.
        assert self.summary["task_overlap"]["8192"] == {"labels": ["text"], "values": [[1.0]], "mean": 1.0}
        assert self.summary["task_overlap"]["16384"]["values"] == [[1.0, 0.0], [0.0, 1.0]]
        assert self.summary["length_overlap"]["text"]["values"] == [[1.0, 0.5], [0.5, 1.0]]
        assert self.summary["length_overlap"]["text"]["mean"] == 0.5
        assert self.summary["chance_overlap"] == pytest.approx(2 / 6, abs=1e-6)

    def test_union_by_hand(self):
        assert self.summary["union"] == {
            "8192": {"size": 2, "deepest_layer": 0, "by_layer": [2, 0, 0]},
            "16384": {"size": 4, "deepest_layer": 2, "by_layer": [1, 2, 1]},
        }

    def test_top_heads(self):
        assert self.summary["top_heads"]["text"]["16384"] == [
            {"head": "0-0", "score": 0.8},
            {"head": "1-1", "score": 0.7},
        ]
        assert self.summary["top_heads"]["image"]["16384"] == [
            {"head": "2-0", "score": 0.6, "recall_at_1": 1.0},
            {"head": "1-0", "score": 0.3, "recall_at_1": 0.5},
        ]

    def test_no_positive_score_is_no_figure(self):
        table = HeadScoresTable([scores_of([[0.0, -0.1]]), scores_of([[0.1, 0.0]], length=16384)])
        summary = head_summary(table, share=0.5)
        assert summary["sparsity"]["text"] == {"8192": None, "16384": 0.5, "mean": 0.5}
        assert "–" in text_of(head_tables(summary))

    def test_impossible_scores(self):
        released = HeadScores.from_released(
            [[3.0, 0.2, 0.2, 0.2]], model_id="m", task="text", context_length=8192, source="release"
        )
        summary = head_summary(HeadScoresTable([released]), share=0.25)
        assert summary["invalid_heads"] == ["0-0"]
        assert summary["sparsity"]["text"]["mean"] == 0.5
        assert summary["sparsity_as_given"]["text"]["mean"] == 0.25
        assert summary["top_heads"]["text"]["8192"][0]["head"] == "0-1"
        assert "Impossible scores left out: 0-0. With them, mean: text 25.0." in text_of(head_tables(summary))

    def test_comparison(self):
        copy = HeadScoresTable([scores_of([[0.8, 0.0], [0.1, 0.1], [0.7, 0.0]], length=16384)])
        summary = head_summary(SMALL, share=1 / 3, compare=copy)
        assert summary["comparison"] == {"model": "org/model", "overlap": {"text": {"16384": 0.5}}}
        assert "Overlap with org/model, %" in text_of(head_tables(summary))
        with pytest.raises(HeadSetError, match="grids are equal"):
            head_summary(SMALL, share=0.5, compare=HeadScoresTable([scores_of([[0.1]])]))

    def test_published(self):
        summary = head_summary(scores_from("Qwen3-VL-8B-Instruct"))
        assert summary["heads_per_task"] == 58
        assert summary["union"]["131072"]["size"] == 112
        assert sum(summary["union"]["131072"]["by_layer"]) == 112
        assert summary["sparsity"]["text"]["mean"] == pytest.approx(0.056, abs=0.0015)
        json.dumps(summary, allow_nan=False)

    def test_gemma_says_which_layers_count(self):
        summary = head_summary(scores_from("gemma-3-12b-it"))
        assert summary["selectable_layers"] == [5, 11, 17, 23, 29, 35, 41, 47]
        assert summary["chance_overlap"] == pytest.approx(39 / 128, abs=1e-6)
        by_layer = summary["union"]["131072"]["by_layer"]
        assert {layer for layer, count in enumerate(by_layer) if count} <= set(summary["selectable_layers"])


class TestTables:
    def test_figures_stand_in_the_tables(self):
        tables = head_tables(head_summary(SMALL, share=1 / 3, top_n=2))
        assert "org/model" in text_of(tables)
        rows = cells_of(tables)
        assert ["text", "16.7", "16.7", "16.7"] in rows
        assert ["image", "–", "16.7", "16.7"] in rows  # not measured at 8K
        assert ["text / image", "–", "0.0"] in rows
        assert ["text", "50.0"] in rows
        assert ["16K", "4", "1", "2", "1", "2"] in rows
        assert ["1", "0-0  0.800", "2-0  0.600"] in rows

    def test_one_layer_and_one_task(self):
        tables = head_tables(head_summary(HeadScoresTable([scores_of([[0.5, 0.1]], length=100)]), share=0.5))
        assert "Overlap" not in text_of(tables)
        assert "layers 0–0" in [column for table in tables for column in table.columns]

    def test_a_bare_head_set(self, tmp_path):
        HeadSet.parse("2-1, 0-3", n_layers=3, n_heads=4).save(tmp_path / "heads.json")
        heads = heads_from(tmp_path / "heads.json")
        assert isinstance(heads, HeadSet)
        summary = head_set_summary(heads)
        assert (summary["size"], summary["deepest_layer"], summary["by_layer"]) == (2, 2, [1, 0, 1])
        (table,) = head_set_tables(summary)
        assert table.title.endswith("2 heads of 3 x 4 (layer-head)")
        assert cells_of([table]) == [["1", "2-1", "–"], ["2", "0-3", "–"]]

    @pytest.mark.parametrize(("length", "name"), [(8192, "8K"), ("131072", "128K"), (1000, "1,000"), (1, "1")])
    def test_length_name(self, length, name):
        assert length_name(length) == name
