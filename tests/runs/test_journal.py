"""The folder of a long run: what resumes, what is refused, and what is there after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mmrh_retriever.errors import DataError
from mmrh_retriever.files import FileModel
from mmrh_retriever.runs.journal import Journal, differences

SETTINGS = {"model": "org/model", "lengths": [8, 16], "options": {"seed": 1, "dtype": "float32"}}
ROOT = Path(__file__).parents[2]


class Unit(FileModel):
    name: str
    value: float


def journal(
    folder: Path, *, settings: Mapping[str, Any] = SETTINGS, resume: bool = False, growing: str | None = None
) -> Journal[Unit]:
    return Journal(folder, Unit, lambda unit: unit.name, settings, what="test run", resume=resume, growing=growing)


def start(folder: Path, *units: Unit, **options: Any) -> None:
    with journal(folder, **options) as run:
        for unit in units:
            run.add(unit)


def failure(folder: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        journal(folder, **options)
    return str(caught.value)


ONE, TWO = Unit(name="one", value=0.1), Unit(name="two", value=1 / 3)


# Starting and resuming


def test_a_new_run_makes_its_folder_with_what_is_above(tmp_path: Path) -> None:
    folder = tmp_path / "above" / "run"
    with journal(folder) as run:
        assert run.done == {}
        run.add(ONE)
        assert run.done == {"one": ONE}
    assert sorted(item.name for item in folder.iterdir()) == ["journal.jsonl", "settings.json"]
    assert json.loads((folder / "settings.json").read_text())["settings"] == SETTINGS


def test_a_resumed_run_has_what_was_finished_and_goes_on(tmp_path: Path) -> None:
    start(tmp_path, ONE)
    with journal(tmp_path, resume=True) as run:
        assert run.done == {"one": ONE}
        run.add(TWO)
    with journal(tmp_path, resume=True) as run:
        assert run.done == {"one": ONE, "two": TWO}  # to the last bit of each number
    assert len((tmp_path / "journal.jsonl").read_bytes().splitlines()) == 2


def test_resume_without_a_run_starts_one(tmp_path: Path) -> None:
    start(tmp_path / "run", ONE, resume=True)
    assert (tmp_path / "run" / "journal.jsonl").is_file()


def test_a_run_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    start(tmp_path, ONE)
    message = failure(tmp_path)
    assert f"{tmp_path} holds a test run already" in message
    assert "(resume=True)" in message
    assert journal(tmp_path, resume=True).done == {"one": ONE}


def test_a_unit_written_again_replaces_the_first(tmp_path: Path) -> None:
    again = Unit(name="one", value=0.9)
    with journal(tmp_path) as run:
        for unit in (ONE, TWO, again):
            run.add(unit)
        assert run.done == {"one": again, "two": TWO}
    assert journal(tmp_path, resume=True).done == {"one": again, "two": TWO}


def test_texts_with_line_separators_stay_one_unit(tmp_path: Path) -> None:
    odd = Unit(name="a\u2028b\nc\u0085d\r", value=0)
    start(tmp_path, odd)
    assert journal(tmp_path, resume=True).done == {odd.name: odd}


# Settings


def test_other_settings_are_refused_and_the_differences_shown(tmp_path: Path) -> None:
    start(tmp_path, ONE)
    other = {"model": "org/model", "lengths": [8], "options": {"seed": 2}, "limit": 5}
    message = failure(tmp_path, settings=other, resume=True)
    assert f"{tmp_path} holds a test run with other settings" in message
    assert [line.strip() for line in message.splitlines()[1:-1]] == [
        "lengths: was [8, 16], now [8]",
        "limit: was nothing, now 5",
        "options.dtype: was 'float32', now nothing",
        "options.seed: was 1, now 2",
    ]
    assert "org/model" not in message
    assert journal(tmp_path, resume=True).done == {"one": ONE}


def test_many_differences_are_counted(tmp_path: Path) -> None:
    start(tmp_path, settings={f"setting {i}": i for i in range(20)})
    lines = failure(tmp_path, settings={}, resume=True).splitlines()
    assert len(lines) == 1 + 12 + 1 + 1
    assert lines[-2].strip() == "and 8 more"


def test_settings_are_compared_as_they_lie_in_the_file(tmp_path: Path) -> None:
    start(tmp_path, ONE, settings={"lengths": (8, 16), "share": 0.1})
    assert journal(tmp_path, settings={"share": 0.1, "lengths": [8, 16]}, resume=True).done == {"one": ONE}


def test_a_growing_setting_takes_new_entries_and_keeps_the_old(tmp_path: Path) -> None:
    start(tmp_path, ONE, settings={"seed": 1, "rankers": {"ours": {"heads": 5}}}, growing="rankers")
    more = {"seed": 1, "rankers": {"bm25": {}}}
    assert "rankers" in failure(tmp_path, settings=more, resume=True)
    with journal(tmp_path, settings=more, resume=True, growing="rankers") as run:
        assert run.settings["rankers"] == {"ours": {"heads": 5}, "bm25": {}}
    stored = json.loads((tmp_path / "settings.json").read_text())["settings"]
    assert stored == {"seed": 1, "rankers": {"ours": {"heads": 5}, "bm25": {}}}
    changed = {"seed": 1, "rankers": {"ours": {"heads": 6}}}
    assert "rankers.ours.heads: was 5, now 6" in failure(tmp_path, settings=changed, resume=True, growing="rankers")
    assert "seed: was 1, now 2" in failure(tmp_path, settings=more | {"seed": 2}, resume=True, growing="rankers")


def test_differences_of_equal_values_are_none() -> None:
    assert list(differences(SETTINGS, json.loads(json.dumps(SETTINGS)))) == []
    assert list(differences({"a": {"b": None}}, {"a": {}})) == ["a.b: was None, now nothing"]


# Folders and files that are something else


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.touch()
    for resume in (False, True):
        assert f"{path} is a file. Expected a folder for the test run" in failure(path, resume=resume)
    assert "can't be made" in failure(path / "below")


def test_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for resume in (False, True):
        assert f"{tmp_path} is not empty and holds no test run" in failure(tmp_path, resume=resume)
    assert [item.name for item in tmp_path.iterdir()] == ["notes.txt"]


def test_what_a_kill_left_of_the_settings_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / f".settings.json.{'0' * 32}.tmp").write_text("{")
    start(tmp_path, ONE)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["journal.jsonl", "settings.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "mmrh-run"}', '{"format": "other", "settings": {}}'])
def test_malformed_settings_are_refused_with_their_file(tmp_path: Path, content: str) -> None:
    start(tmp_path, ONE)
    (tmp_path / "settings.json").write_text(content)
    message = failure(tmp_path, resume=True)
    assert str(tmp_path / "settings.json") in message
    assert "settings file of a test run" in message


def test_a_last_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    start(tmp_path, ONE, TWO)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with journal(tmp_path, resume=True) as run:
        assert run.done == {"one": ONE}
        run.add(TWO)
    assert path.read_bytes() == whole
    path.write_bytes(whole[:5])  # not one line is whole
    with journal(tmp_path, resume=True) as run:
        assert run.done == {}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"name": "two"}', "value: Field required"),
        (b"{", "Invalid JSON"),
        (b"", "Invalid JSON"),
        (b"\xff", "all of it"),
    ],
)
def test_a_malformed_line_is_named_with_file_and_number(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "journal.jsonl"
    start(tmp_path, ONE, TWO)
    first, _ = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + line + b"\n" + first)
    message = failure(tmp_path, resume=True)
    assert f"{path}, line 2: not a valid line of a test run" in message
    assert problem in message


def test_a_journal_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "run" / "journal.jsonl").mkdir(parents=True)
    (tmp_path / "run" / "settings.json").write_text(json.dumps({"format": "mmrh-run", "settings": SETTINGS}))
    assert "journal.jsonl: can't be written" in failure(tmp_path / "run", resume=True)


# Kills and full disks


WRITER = """
import itertools, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.runs.test_journal import Unit, journal
with journal(Path({folder!r}), resume=True) as run:
    for number in itertools.count(len(run.done)):
        run.add(Unit(name=f"unit {{number}} " + "x" * 3000, value=number / 3))
        print(number, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_all_that_was_finished_is_there_after_a_kill(tmp_path: Path) -> None:
    finished = -1
    for _ in range(2):  # the second process goes on where the first was killed
        code = WRITER.format(root=str(ROOT), folder=str(tmp_path / "run"))
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            while (line := process.stdout.readline()) and int(line) < finished + 20:
                pass
            os.kill(process.pid, signal.SIGKILL)
            finished = max([int(line), *map(int, process.stdout.read().split())])
        assert process.returncode == -signal.SIGKILL
        with journal(tmp_path / "run", resume=True) as run:
            values = [unit.value for unit in run.done.values()]
        assert len(values) in (finished + 1, finished + 2)  # the last may have been written and not announced
        assert values == [number / 3 for number in range(len(values))]
        finished = len(values) - 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_of_ours(tmp_path: Path) -> None:
    start(tmp_path, settings=SETTINGS)
    (tmp_path / "journal.jsonl").unlink()
    (tmp_path / "journal.jsonl").symlink_to("/dev/full")
    with pytest.raises(DataError, match="No space left.*finished is kept"), journal(tmp_path, resume=True) as run:
        run.add(ONE)
    assert run.done == {}


def test_after_a_failed_write_the_next_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with journal(tmp_path) as run:
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", no_space)
            with pytest.raises(DataError, match="No space left"):
                run.add(ONE)
        run.add(TWO)
    assert journal(tmp_path, resume=True).done["two"] == TWO
