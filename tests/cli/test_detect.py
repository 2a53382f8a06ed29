"""``mmrh detect`` and ``mmrh causal`` from end to end on a tiny model in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from mmrh_retriever import HeadScoresTable, HeadSet, causal
from mmrh_retriever.cli.causal import causal_command
from mmrh_retriever.cli.detect import detect_command
from mmrh_retriever.errors import ContextOverflowError, DataError
from tests.factories import TEXT_ONLY, tiny

app = typer.Typer()
app.command("detect")(detect_command)
app.command("causal")(causal_command)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name in ("llama", "qwen3_vl"):
        folder = tmp_path_factory.mktemp(name)
        model = tiny(name)
        model.model.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        if name not in TEXT_ONLY:
            model.image_processor.save_pretrained(folder)
        found[name] = folder
    return found


def call(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout


def test_detect_writes_scores_and_tells_of_them(folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    few = ("--lengths", 700, "--examples", 1, "--depths", 2, "--device", "cpu")
    lines = call("detect", folders["llama"], "--out", out, *few, "--json").splitlines()
    (entry,) = map(json.loads, lines)
    assert (entry["task"], entry["context_length"], entry["probes"], entry["heads"]) == ("text", 700, 2, 1)
    table = HeadScoresTable.load(out)
    assert table.model_id == str(folders["llama"])
    assert entry["best"][0] == str(HeadSet.of_tasks(table).heads[0])
    with pytest.raises(DataError, match="Resume"):
        call("detect", folders["llama"], "--out", out, *few)
    assert "best heads" in call("detect", folders["llama"], "--out", out, *few, "--resume")
    with pytest.raises(DataError, match=r"probes\.seed"):
        call("detect", folders["llama"], "--out", out, *few, "--resume", "--seed", 3)


def test_detect_hides_needles_in_the_users_files(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("The tables of the balance sheet show water use. " * 30)
    few = ("--lengths", 500, "--examples", 1, "--depths", 1, "--device", "cpu")
    arguments = ("detect", folders["qwen3_vl"], "--out", tmp_path / "s.json", "--task", "rendered_text", *few)
    with pytest.raises(DataError, match="--image-share 0"):
        call(*arguments, "--haystack", tmp_path / "own.txt")
    (tmp_path / "s.probes.jsonl").unlink()
    shown = call(*arguments, "--haystack", tmp_path / "own.txt", "--image-share", 0, "--json")
    assert json.loads(shown)["task"] == "rendered_text"


@pytest.mark.parametrize(
    "arguments",
    [
        ("detect", "m"),
        ("detect", "m", "--out", "s.txt"),
        ("detect", "m", "--out", "s.json", "--task", "texts"),
        ("detect", "m", "--out", "s.json", "--lengths", "8k"),
        ("detect", "m", "--out", "s.json", "--lengths", "64,64"),
        ("detect", "m", "--out", "s.json", "--image-share", "2"),
        ("causal", "m", "--heads", "h.json"),
        ("causal", "m", "--heads", "h.json", "--out", "o", "--questions", "q.jsonl"),
        ("causal", "m", "--heads", "h.json", "--out", "o", "--phase", "never"),
    ],
)
def test_bad_arguments_are_told_before_a_model_is_loaded(arguments: tuple[str, ...]) -> None:
    call(*arguments, code=2)


def test_lengths_beyond_the_context_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ContextOverflowError, match="--lengths"):
        call("detect", folders["llama"], "--out", tmp_path / "s.json", "--lengths", 8192, "--device", "cpu")


def test_causal_writes_rows_summary_and_plot(folders: dict[str, Path], tmp_path: Path) -> None:
    HeadSet.parse("0-1, 2-3", n_layers=3, n_heads=4).save(tmp_path / "heads.json")
    few = ("--lengths", 500, "--examples", 1, "--depths", 2, "--random-seeds", 1, "--device", "cpu")
    arguments = ("causal", folders["llama"], "--heads", tmp_path / "heads.json", "--out", tmp_path / "out", *few)
    lines = call(*arguments, "--json").splitlines()
    assert len(lines) == 7
    assert {json.loads(line)["masked"] for line in lines} == {"unmasked", "selected", "random", "random, same layers"}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["probes"] == 2
    assert len((tmp_path / "out" / "rows.jsonl").read_text().splitlines()) == 14
    assert (tmp_path / "out" / "causal.png").is_file()
    assert "| unmasked |" in (tmp_path / "out" / "report.md").read_text()
    with pytest.raises(DataError, match="holds a causal test already"):
        call(*arguments)
    with pytest.raises(DataError, match=r"phases: the file has \['all', 'decode'\], this run \['all'\]"):
        call(*arguments, "--resume", "--phase", "all")


def test_a_killed_causal_test_goes_on(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    HeadSet.parse("0-1, 2-3", n_layers=3, n_heads=4).save(tmp_path / "heads.json")
    few = ("--lengths", 500, "--examples", 1, "--depths", 3, "--random-seeds", 1, "--phase", "all", "--device", "cpu")
    arguments = ("causal", folders["llama"], "--heads", tmp_path / "heads.json", *few)
    whole = call(*arguments, "--out", tmp_path / "whole")
    assert "Causal test on 3 probes" in whole
    lines = (tmp_path / "whole" / "rows.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 12
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / "settings.json").write_bytes((tmp_path / "whole" / "settings.json").read_bytes())
    (killed / "rows.jsonl").write_text("".join(lines[:6]) + lines[6][:20])  # in the middle of the second probe
    asked: list[str] = []
    plain = causal._row
    monkeypatch.setattr(causal, "_row", lambda *given: asked.append(given[1].name) or plain(*given))
    assert call(*arguments, "--out", killed, "--resume") == whole
    assert len(asked) == 8
    assert (killed / "rows.jsonl").read_text() == "".join(lines)
    (killed / "rows.jsonl").write_text("{}\n" + lines[0])
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1: not an answer"):
        call(*arguments, "--out", killed, "--resume")
