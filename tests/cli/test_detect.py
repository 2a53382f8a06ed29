"""``mmrh detect`` and ``mmrh causal`` from end to end on a tiny model in a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pymupdf
import pytest
from typer.testing import CliRunner

from mmrh_retriever import HeadScoresTable, HeadSet
from mmrh_retriever.cli.main import app
from mmrh_retriever.errors import ContextOverflowError, DataError
from mmrh_retriever.research import causal
from tests.factories import TEXT_ONLY, tiny


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


def test_detect_writes_scores_and_shows_them(folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    few = ("--lengths", 700, "--examples", 1, "--depths", 2, "--device", "cpu")
    lines = call("detect", folders["llama"], "--out", out, *few, "--json").splitlines()
    (entry,) = map(json.loads, lines)
    assert (entry["task"], entry["context_length"], entry["probes"], entry["heads"]) == ("text", 700, 2, 1)
    table = HeadScoresTable.load(out)
    assert table.model_id == str(folders["llama"])
    assert entry["best"][0] == str(HeadSet.of_tasks(table).heads[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.json", "scores.probes"]
    with pytest.raises(DataError, match="holds a detection run already"):
        call("detect", folders["llama"], "--out", out, *few)
    assert "best heads" in call("detect", folders["llama"], "--out", out, *few, "--resume")
    with pytest.raises(DataError, match=r"probes\.seed"):
        call("detect", folders["llama"], "--out", out, *few, "--resume", "--seed", 3)
    with pytest.raises(DataError, match=r"prompt\.ranking\.count_question_label: was True, now False"):
        call("detect", folders["llama"], "--out", out, *few, "--resume", "--preset", "paper")


def test_detect_hides_needles_in_the_users_files(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("The tables of the balance sheet show water use. " * 30)
    few = ("--lengths", 500, "--examples", 1, "--depths", 1, "--device", "cpu")
    arguments = ("detect", folders["qwen3_vl"], "--out", tmp_path / "s.json", "--task", "rendered_text", *few)
    with pytest.raises(DataError, match="--image-share 0"):
        call(*arguments, "--haystack", tmp_path / "own.txt")
    shutil.rmtree(tmp_path / "s.probes")
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
        ("detect", "m", "--out", "s.json", "--preset", "papers"),
        ("causal", "m", "--heads", "h.json"),
        ("causal", "m", "--heads", "h.json", "--out", "o", "--questions", "q.jsonl"),
        ("causal", "m", "--heads", "h.json", "--out", "o", "--phase", "never"),
    ],
)
def test_bad_arguments_are_refused_before_a_model_is_loaded(arguments: tuple[str, ...]) -> None:
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
    assert all(one["above_chance"] == (one["correct"] > one["chance"]) for one in map(json.loads, lines))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["probes"] == 2
    assert len((tmp_path / "out" / "rows.jsonl").read_text().splitlines()) == 14
    assert (tmp_path / "out" / "causal.png").is_file()
    assert "| unmasked |" in (tmp_path / "out" / "tables.md").read_text()
    with pytest.raises(DataError, match="holds a causal test already"):
        call(*arguments)
    with pytest.raises(DataError, match=r"phases: was \['all', 'decode'\], now \['all'\]"):
        call(*arguments, "--resume", "--phase", "all")
    with pytest.raises(DataError, match=r"random_from: was 'others', now 'all'"):
        call(*arguments, "--resume", "--random-from", "all")


def test_a_killed_causal_test_goes_on(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    HeadSet.parse("0-1, 2-3", n_layers=3, n_heads=4).save(tmp_path / "heads.json")
    few = ("--lengths", 500, "--examples", 1, "--depths", 3, "--random-seeds", 1, "--phase", "all", "--device", "cpu")
    arguments = ("causal", folders["llama"], "--heads", tmp_path / "heads.json", *few)
    whole = call(*arguments, "--out", tmp_path / "whole")
    assert "Causal test on 3 probes" in whole
    rows = (tmp_path / "whole" / "rows.jsonl").read_text()
    assert len(rows.splitlines()) == 12
    lines = (tmp_path / "whole" / "journal.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 3
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / "settings.json").write_bytes((tmp_path / "whole" / "settings.json").read_bytes())
    (killed / "journal.jsonl").write_text(lines[0] + lines[1][:20])  # in the middle of the second probe
    asked: list[str] = []
    plain = causal._row
    monkeypatch.setattr(causal, "_row", lambda *given: asked.append(given[1].name) or plain(*given))
    assert call(*arguments, "--out", killed, "--resume") == whole
    assert len(asked) == 8
    assert (killed / "rows.jsonl").read_text() == rows
    kept = tmp_path / "kept"
    (killed / "journal.jsonl").write_text(lines[0])

    def copying(*given: object) -> object:
        """The first answer of the resumed run; the folder is as a kill before it would leave it."""
        if not kept.exists():
            shutil.copytree(killed, kept)
        return plain(*given)

    monkeypatch.setattr(causal, "_row", copying)
    call(*arguments, "--out", killed, "--resume")
    assert (kept / "journal.jsonl").read_text() == lines[0], "no answer is lost between opening and the first new one"
    assert (kept / "rows.jsonl").read_text() == rows
    assert call(*arguments, "--out", kept, "--resume") == whole
    (killed / "journal.jsonl").write_text("{}\n" + lines[0])
    with pytest.raises(DataError, match=r"journal\.jsonl, line 1: not a valid line of a causal test"):
        call(*arguments, "--out", killed, "--resume")


def test_causal_asks_about_documents(folders: dict[str, Path], tmp_path: Path) -> None:
    made = pymupdf.open()
    made.new_page(width=200, height=300).insert_text((20, 50), "Sails cost nine euros.")
    made.save(tmp_path / "a.pdf")
    question = {"document": "a.pdf", "question": "What do sails cost?", "answer": "nine euros"}
    (tmp_path / "q.jsonl").write_text(json.dumps(question) + "\n")
    HeadSet.parse("0-1", n_layers=3, n_heads=4).save(tmp_path / "heads.json")
    arguments = ("--random-seeds", 1, "--phase", "decode", "--max-new-tokens", 2, "--device", "cpu", "--json")
    lines = call(
        *("causal", folders["llama"], "--heads", tmp_path / "heads.json", "--out", tmp_path / "out"),
        *("--questions", tmp_path / "q.jsonl", "--documents", tmp_path, *arguments),
    ).splitlines()
    assert {json.loads(line)["masked"] for line in lines} == {"unmasked", "selected", "random", "random, same layers"}
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())["settings"]
    assert settings["questions"] == {"file": "q.jsonl", "limit": None, "max_pages": None}
