"""The picture of a model's heads: what it shows, and what is refused."""

from __future__ import annotations

import builtins
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mmrh_retriever.errors import DataError, HeadSetError
from mmrh_retriever.heads.sets import HeadScoresTable, HeadSet
from mmrh_retriever.research import head_plots as plots
from tests.research.small_scores import SMALL, scores_of

Figure = pytest.importorskip("matplotlib.figure").Figure


def test_saves_a_picture_that_is_not_blank(tmp_path):
    plots.plot_overview(SMALL, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert min(image.size) > 300
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10


def test_the_command_draws_the_share_that_was_asked_for(tmp_path, monkeypatch):
    from mmrh_retriever.cli.main import app

    seen = {}
    monkeypatch.setattr(plots, "plot_overview", lambda table, path, **options: seen.update(options))
    SMALL.save(tmp_path / "scores.json")
    asked = ["heads", str(tmp_path / "scores.json"), "--top", "40%", "--plot", str(tmp_path / "x.png")]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert seen == {"share": 0.4}


def test_leaves_pyplot_alone(tmp_path):
    sys.modules.pop("matplotlib.pyplot", None)
    plots.plot_overview(SMALL, tmp_path / "plot.svg")
    assert "matplotlib.pyplot" not in sys.modules
    assert (tmp_path / "plot.svg").read_bytes().startswith(b"<?xml")


def test_selected_heads_are_framed_and_counted():
    from matplotlib.patches import Rectangle

    made = Figure(figsize=(5, 5))
    counts, grid = made.subplots(2, 1)
    heads = HeadSet.of_tasks(SMALL, ["text"], 8192, share=1 / 3)
    keys = plots._draw_map(made, grid, SMALL, heads, [SMALL.at("text", 8192)])
    plots._draw_counts(counts, SMALL, heads, keys)
    framed = {(patch.get_x() + 0.5, patch.get_y() + 0.5) for patch in grid.patches if type(patch) is Rectangle}
    assert framed == {(0, 0), (0, 1)}  # layer, head
    assert [bar.get_height() for bar in counts.patches] == [2, 0, 0]
    assert counts.get_legend().get_texts()[0].get_text() == "selected, 2 heads"
    shown = np.ma.getdata(grid.images[0].get_array())
    assert shown.shape == (2, 3)  # heads, layers
    assert shown[1, 0] == pytest.approx(0.2)


def test_a_map_over_tasks_takes_the_best_score():
    made = Figure(figsize=(5, 5))
    grid = made.subplots()
    heads = HeadSet.of_tasks(SMALL, share=1 / 3)
    plots._draw_map(made, grid, SMALL, heads, [SMALL.at("text", 16384), SMALL.at("image", 16384)])
    shown = np.ma.getdata(grid.images[0].get_array())  # (heads, layers)
    np.testing.assert_allclose(shown, [[0.8, 0.3, 0.6], [0.0, 0.7, 0.0]], atol=1e-6)
    assert len(grid.patches) == len(heads) == 4


def test_curves_cross_half_at_the_sparsity():
    axis = Figure(figsize=(5, 5)).subplots()
    plots._draw_curves(axis, [SMALL.at("text", 16384), SMALL.at("image", 16384)])
    labels = [line.get_label() for line in axis.get_lines()]
    assert "text: 16.7 %" in labels
    assert "image: 16.7 %" in labels


def test_a_task_without_positive_scores_is_named(tmp_path):
    text, image = scores_of([[0.5, 0.1]], "text"), scores_of([[-0.5, 0.0]], "image")
    axis = Figure(figsize=(5, 5)).subplots()
    plots._draw_curves(axis, [text, image])
    assert [label.get_text() for label in axis.get_legend().get_texts()] == ["text: 50.0 %", "image: no positive score"]
    plots.plot_overview(HeadScoresTable([image]), tmp_path / "map.png")


def test_other_endings_and_lengths_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"\.png, \.svg, \.pdf"):
        plots.plot_overview(SMALL, tmp_path / "plot.jpg")
    with pytest.raises(HeadSetError, match="There are the lengths 8192, 16384"):
        plots.plot_overview(SMALL, tmp_path / "plot.png", context_length=4096)
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *arguments, **keywords):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r'pip install "mmrh-retriever\[plot\]"'):
        plots.plot_overview(SMALL, tmp_path / "plot.png")
