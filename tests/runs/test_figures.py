"""Figures: their endings, their one optional dependency, and files that are whole or absent."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mmrh_retriever.errors import DataError
from mmrh_retriever.runs.figures import figure

BEGINNINGS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF", ".PNG": b"\x89PNG"}


@pytest.mark.parametrize("ending", BEGINNINGS)
def test_the_ending_says_the_format(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra 'plot'")
    path = tmp_path / f"plot{ending}"
    with figure(path, 3, 2, dpi=50) as drawn:
        drawn.subplots().plot([1, 2, 3])
    assert path.read_bytes().startswith(BEGINNINGS[ending])


@pytest.mark.parametrize("name", ["plot.jpg", "plot", "plot.png.txt"])
def test_other_endings_are_refused_before_anything_is_drawn(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"saved as \.png, \.svg, \.pdf") as caught, figure(tmp_path / name, 3, 2):
        pytest.fail("nothing may be drawn")
    assert name in str(caught.value)


def test_a_missing_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ImportError, match=r"mmrh-retriever\[plot\]"), figure(tmp_path / "plot.png", 3, 2):
        pytest.fail("nothing may be drawn")


def test_nothing_is_written_where_drawing_fails(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra 'plot'")
    path = tmp_path / "plot.png"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), figure(path, 3, 2) as drawn:
        drawn.subplots().plot([1 / 0])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_written_where_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra 'plot'")

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(DataError, match="No space left"), figure(tmp_path / "plot.png", 3, 2):
        pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="folder exists"), figure(tmp_path / "none" / "plot.png", 3, 2):
        pass


def test_pyplot_is_left_alone(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra 'plot'")
    from matplotlib import pyplot

    with figure(tmp_path / "plot.png", 3, 2):
        pass
    assert pyplot.get_fignums() == []
