"""``mmrh rank --first-stage``: pages picked by their text, and kept with their texts in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Mmrh
from tests.factories import page_image
from tests.library.made_files import make

QUESTION = "Where is the lifeboat?"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path / "in" / "a.pdf", "harbour", "lifeboat")
    make(tmp_path / "in" / "b.pdf", "revenue")
    return tmp_path / "in"


def test_a_first_stage_picks_and_keeps(mmrh: Mmrh, model: Path, folder: Path, tmp_path: Path) -> None:
    given = ("rank", folder, QUESTION, "--model", model, "--independent", "--first-stage", "bm25", "--candidates", 1)
    more = ("--store", tmp_path / "kept", "--json", "--heatmap", tmp_path / "maps")
    done = mmrh(*given, *more)
    assert done.code == 0, done.stderr
    (row,) = map(json.loads, done.stdout.splitlines())
    assert (row["rank"], row["document"], row["page"]) == (1, "a.pdf", 2)
    assert len(list((tmp_path / "kept" / "documents").glob("*.mmrh-document"))) == 2
    assert len(list((tmp_path / "kept" / "pages").glob("*.safetensors"))) == 1
    assert len(list((tmp_path / "maps").glob("*.png"))) == 1
    assert mmrh(*given, *more).stdout == done.stdout


def test_pages_without_text_are_refused_in_the_command_s_own_words(mmrh: Mmrh, model: Path, folder: Path) -> None:
    page_image(1).save(folder / "scan.png")
    given = ("rank", folder, QUESTION, "--model", model, "--first-stage", "bm25")
    assert len(mmrh(*given, "--json").stdout.splitlines()) == 4
    done = mmrh(*given, "--textless", 0)
    assert done.code == 1
    assert "at most --textless 0 such pages" in done.stderr


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--candidates", 3), "goes with --first-stage"),
        (("--first-stage", "all", "--candidates", 3), "goes with --first-stage"),
        (("--first-stage", "bm25", "--regions"), "not with --regions"),
        (("--first-stage", "bm25", "--pages", "1"), "not with --regions"),
        (("--first-stage", "dense"), "dense"),
    ],
)
def test_options_that_do_not_go_together(mmrh: Mmrh, folder: Path, options: tuple[object, ...], problem: str) -> None:
    done = mmrh("rank", folder, QUESTION, *options)
    assert (done.code, done.stdout) == (2, "")
    assert problem in done.stderr


def test_neighbours_that_no_first_stage_picked(mmrh: Mmrh, model: Path, folder: Path) -> None:
    given = ("rank", folder, QUESTION, "--model", model, "--first-stage", "bm25", "--candidates", 1)
    hit, beside = map(json.loads, mmrh(*given, "--neighbours", "both", "--json").stdout.splitlines())
    assert (hit["document"], hit["page"], hit["neighbour_of"]) == ("a.pdf", 2, None)
    assert beside == {"rank": None, "document": "a.pdf", "page": 1, "score": None, "neighbour_of": 1}
    table = mmrh(*given, "--neighbours", "both")
    assert (table.code, table.stdout.count("a.pdf")) == (0, 2), table.stderr
