from __future__ import annotations

import builtins
import io
import json
import math
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from mmrh_retriever.cli.main import app
from mmrh_retriever.errors import DataError, HeadSetError
from mmrh_retriever.heads.sets import HeadScores, HeadScoresTable, HeadSet
from mmrh_retriever.research import head_plots as plots
from mmrh_retriever.research.head_tables import head_report, length_name, report_tables, scores_from


def scores_of(values, task="text", length=8192, **extra):
    return HeadScores(np.array(values), "org/model", task, length, **extra)


SMALL = HeadScoresTable(
    [
        scores_of([[0.8, 0.2], [0.1, 0.1], [0.0, -0.5]], "text", 8192, source="by hand"),
        scores_of([[0.8, 0.0], [0.1, 0.7], [0.0, math.nan]], "text", 16384),
        scores_of(
            [[0.0, 0.0], [0.3, 0.3], [0.6, 0.0]], "image", 16384, recall_at_1=[[0.0, 0.0], [0.5, 0.25], [1.0, 0]]
        ),
    ]
)


def text_of(tables):
    console = Console(width=160, record=True, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.export_text()


class TestSource:
    def test_file_or_name(self, tmp_path):
        SMALL.save(tmp_path / "scores.json")
        assert scores_from(tmp_path / "scores.json").model_id == "org/model"
        assert scores_from("Qwen3-VL-8B-Instruct").model_id == "Qwen/Qwen3-VL-8B-Instruct"
        with pytest.raises(DataError, match="no such file"):
            scores_from(tmp_path / "missing.json")
        with pytest.raises(HeadSetError, match="Published are"):
            scores_from("org/unknown")


class TestReport:
    report = head_report(SMALL, share=1 / 3, top_n=2)

    def test_is_plain_data(self):
        assert json.loads(json.dumps(self.report, allow_nan=False)) == self.report

    def test_model(self):
        assert self.report["model"] == "org/model"
        assert self.report["source"] == "by hand"
        assert (self.report["n_layers"], self.report["n_heads"], self.report["heads_per_task"]) == (3, 2, 2)
        assert (self.report["tasks"], self.report["context_lengths"]) == (["text", "image"], [8192, 16384])
        assert (self.report["selectable_layers"], self.report["invalid_heads"]) == (None, [])

    def test_sparsity_by_hand(self):
        # text at 8K: 0.8 of 1.2; at 16K 0.8 is exactly half of 1.6; image: 0.6 of 1.2.
        assert self.report["sparsity"] == {
            "text": {"8192": 0.166667, "16384": 0.166667, "mean": 0.166667},
            "image": {"16384": 0.166667, "mean": 0.166667},
        }
        assert self.report["sparsity_as_given"] == self.report["sparsity"]

    def test_overlaps_by_hand(self):
        # Best two: text 8K 0-0 0-1, text 16K 0-0 1-1, image 16K 2-0 1-0.
        assert self.report["task_overlap"]["8192"] == {"labels": ["text"], "values": [[1.0]], "mean": 1.0}
        assert self.report["task_overlap"]["16384"]["values"] == [[1.0, 0.0], [0.0, 1.0]]
        assert self.report["length_overlap"]["text"]["values"] == [[1.0, 0.5], [0.5, 1.0]]
        assert self.report["length_overlap"]["text"]["mean"] == 0.5
        assert self.report["chance_overlap"] == pytest.approx(2 / 6, abs=1e-6)

    def test_union_by_hand(self):
        assert self.report["union"] == {
            "8192": {"size": 2, "deepest_layer": 0, "by_layer": [2, 0, 0]},
            "16384": {"size": 4, "deepest_layer": 2, "by_layer": [1, 2, 1]},
        }

    def test_top_heads(self):
        assert self.report["top_heads"]["text"]["16384"] == [
            {"head": "0-0", "score": 0.8},
            {"head": "1-1", "score": 0.7},
        ]
        assert self.report["top_heads"]["image"]["16384"] == [
            {"head": "2-0", "score": 0.6, "recall_at_1": 1.0},
            {"head": "1-0", "score": 0.3, "recall_at_1": 0.5},
        ]

    def test_no_positive_score_is_no_figure(self):
        table = HeadScoresTable([scores_of([[0.0, -0.1]]), scores_of([[0.1, 0.0]], length=16384)])
        report = head_report(table, share=0.5)
        assert report["sparsity"]["text"] == {"8192": None, "16384": 0.5, "mean": 0.5}
        assert "–" in text_of(report_tables(report))

    def test_impossible_scores(self):
        released = HeadScores.from_released(
            [[3.0, 0.2, 0.2, 0.2]], model_id="m", task="text", context_length=8192, source="release"
        )
        report = head_report(HeadScoresTable([released]), share=0.25)
        assert report["invalid_heads"] == ["0-0"]
        assert report["sparsity"]["text"]["mean"] == 0.5
        assert report["sparsity_as_given"]["text"]["mean"] == 0.25
        assert report["top_heads"]["text"]["8192"][0]["head"] == "0-1"
        assert "Impossible scores left out: 0-0. With them, mean: text 25.0." in text_of(report_tables(report))

    def test_comparison(self):
        copy = HeadScoresTable([scores_of([[0.8, 0.0], [0.1, 0.1], [0.7, 0.0]], length=16384)])
        report = head_report(SMALL, share=1 / 3, compare=copy)
        assert report["comparison"] == {"model": "org/model", "overlap": {"text": {"16384": 0.5}}}
        assert "Overlap with org/model, %" in text_of(report_tables(report))
        with pytest.raises(HeadSetError, match="grids are equal"):
            head_report(SMALL, share=0.5, compare=HeadScoresTable([scores_of([[0.1]])]))

    def test_published(self):
        report = head_report(scores_from("Qwen3-VL-8B-Instruct"))
        assert report["heads_per_task"] == 58
        assert report["union"]["131072"]["size"] == 112
        assert sum(report["union"]["131072"]["by_layer"]) == 112
        assert report["sparsity"]["text"]["mean"] == pytest.approx(0.056, abs=0.0015)
        json.dumps(report, allow_nan=False)

    def test_gemma_says_which_layers_count(self):
        report = head_report(scores_from("gemma-3-12b-it"))
        assert report["selectable_layers"] == [5, 11, 17, 23, 29, 35, 41, 47]
        assert report["chance_overlap"] == pytest.approx(39 / 128, abs=1e-6)
        by_layer = report["union"]["131072"]["by_layer"]
        assert {layer for layer, count in enumerate(by_layer) if count} <= set(report["selectable_layers"])


class TestTables:
    def test_figures_stand_in_the_tables(self):
        text = text_of(report_tables(head_report(SMALL, share=1 / 3, top_n=2)))
        assert "org/model" in text
        rows = [[cell.strip() for cell in line.strip("│┃").split("│")] for line in text.splitlines()]
        assert ["text", "16.7", "16.7", "16.7"] in rows
        assert ["image", "–", "16.7", "16.7"] in rows  # not measured at 8K
        assert ["text / image", "–", "0.0"] in rows
        assert ["text", "50.0"] in rows
        assert ["16K", "4", "1", "2", "1", "2"] in rows
        assert ["1", "0-0  0.800", "2-0  0.600"] in rows

    def test_one_layer_and_one_task(self):
        report = head_report(HeadScoresTable([scores_of([[0.5, 0.1]], length=100)]), share=0.5)
        text = text_of(report_tables(report))
        assert "Overlap" not in text
        assert "layers 0–0" in text

    @pytest.mark.parametrize(("length", "name"), [(8192, "8K"), ("131072", "128K"), (1000, "1,000"), (1, "1")])
    def test_length_name(self, length, name):
        assert length_name(length) == name


matplotlib = pytest.importorskip("matplotlib")


class TestPlots:
    @pytest.mark.parametrize(
        "draw", [plots.plot_head_map, plots.plot_mass_curves, plots.plot_overlaps, plots.plot_overview]
    )
    def test_saves_a_picture_that_is_not_blank(self, tmp_path, draw):
        path = tmp_path / "plot.png"
        draw(SMALL, path)
        with Image.open(path) as image:
            assert min(image.size) > 300
            assert len(image.convert("RGB").getcolors(1 << 24)) > 10

    def test_the_command_draws_the_share_that_was_asked_for(self, tmp_path, monkeypatch):
        seen = {}
        monkeypatch.setattr(plots, "plot_overview", lambda table, path, **options: seen.update(options))
        SMALL.save(tmp_path / "scores.json")
        asked = ["heads", str(tmp_path / "scores.json"), "--top", "40%", "--plot", str(tmp_path / "x.png")]
        done = CliRunner().invoke(app, asked)
        assert done.exit_code == 0, done.output
        assert seen == {"share": 0.4}

    def test_leaves_pyplot_alone(self, tmp_path):
        sys.modules.pop("matplotlib.pyplot", None)
        plots.plot_overview(SMALL, tmp_path / "plot.svg")
        assert "matplotlib.pyplot" not in sys.modules
        assert (tmp_path / "plot.svg").read_bytes().startswith(b"<?xml")

    def test_selected_heads_are_framed_and_counted(self):
        from matplotlib.patches import Rectangle

        figure = plots._figure(5, 5)
        counts, grid = figure.subplots(2, 1)
        plots._draw_map(figure, counts, grid, SMALL, "text", 8192, 1 / 3)
        framed = {(patch.get_x() + 0.5, patch.get_y() + 0.5) for patch in grid.patches if type(patch) is Rectangle}
        assert framed == {(0, 0), (0, 1)}  # layer, head
        assert [bar.get_height() for bar in counts.patches] == [2, 0, 0]
        shown = np.ma.getdata(grid.images[0].get_array())
        assert shown.shape == (2, 3)  # heads, layers
        assert shown[1, 0] == pytest.approx(0.2)

    def test_a_map_over_tasks_takes_the_best_score(self):
        figure = plots._figure(5, 5)
        counts, grid = figure.subplots(2, 1)
        plots._draw_map(figure, counts, grid, SMALL, None, 16384, 1 / 3)
        shown = np.ma.getdata(grid.images[0].get_array())  # (heads, layers)
        np.testing.assert_allclose(shown, [[0.8, 0.3, 0.6], [0.0, 0.7, 0.0]], atol=1e-6)
        assert len(grid.patches) == len(HeadSet.of_tasks(SMALL, share=1 / 3)) == 4

    def test_curves_cross_half_at_the_sparsity(self):
        axis = plots._figure(5, 5).subplots()
        plots._draw_curves(axis, SMALL, 16384)
        labels = [line.get_label() for line in axis.get_lines()]
        assert "text: 16.7 %" in labels
        assert "image: 16.7 %" in labels

    def test_a_task_without_positive_scores_is_named(self, tmp_path):
        table = HeadScoresTable([scores_of([[0.5, 0.1]], "text"), scores_of([[-0.5, 0.0]], "image")])
        axis = plots._figure(5, 5).subplots()
        plots._draw_curves(axis, table, 8192)
        assert [text.get_text() for text in axis.get_legend().get_texts()] == [
            "text: 50.0 %",
            "image: no positive score",
        ]
        plots.plot_head_map(table, tmp_path / "map.png", task="image")

    def test_other_endings_and_lengths_are_refused(self, tmp_path):
        with pytest.raises(DataError, match=r"\.png, \.svg, \.pdf"):
            plots.plot_overview(SMALL, tmp_path / "plot.jpg")
        with pytest.raises(HeadSetError, match="There are the lengths 8192, 16384"):
            plots.plot_overview(SMALL, tmp_path / "plot.png", context_length=4096)
        with pytest.raises(HeadSetError, match="'image' at 8192"):
            plots.plot_head_map(SMALL, tmp_path / "plot.png", task="image", context_length=8192)
        assert list(tmp_path.iterdir()) == []

    def test_without_matplotlib_the_extra_is_named(self, tmp_path, monkeypatch):
        real = builtins.__import__

        def refuse(name, *arguments, **keywords):
            if name.startswith("matplotlib"):
                raise ImportError(name)
            return real(name, *arguments, **keywords)

        monkeypatch.setattr(builtins, "__import__", refuse)
        with pytest.raises(ImportError, match=r'pip install "mmrh-retriever\[plot\]"'):
            plots.plot_overview(SMALL, tmp_path / "plot.png")
