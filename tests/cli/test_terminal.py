"""What the command line does with names, questions and arguments that are made to harm."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from mmrh_retriever.cli import main as cli_main
from mmrh_retriever.cli.main import _log_plainly, main
from mmrh_retriever.cli.options import say
from tests.cli.conftest import Mmrh
from tests.factories import page_image

HOSTILE = "Who[/red] \x1b[31m\x9b1m\u202e:warning: asks\udc80?"
SHOWN = r"Who[/red] \x1b[31m\x9b1m\u202e:warning: asks\udc80?"
NAME = "report[draft]\x1b]0;x\x07:boom:\udcff.pdf"
SHOWN_NAME = r"report[draft]\x1b]0;x\x07:boom:\udcff.pdf"


def test_markup_and_escapes_are_printed_as_they_are(mmrh: Mmrh, model: Path, tmp_path: Path) -> None:
    file = tmp_path / NAME
    page_image(1).save(tmp_path / "plain.pdf")
    (tmp_path / "plain.pdf").rename(file)
    report = tmp_path / f"{NAME}.html"
    for output in ((), ("--markdown",)):
        done = mmrh("rank", file, HOSTILE, "--model", model, "--report", report, *output)
        assert done.code == 0, done.stderr
        assert SHOWN in done.stdout
        assert SHOWN_NAME in done.stdout
        assert f"{SHOWN_NAME}.html" in done.stderr
        assert not any(sign in done.stdout + done.stderr for sign in ("\x1b]", "\x1b[31m", "\x9b", "\u202e", "\udc80"))
    text = report.read_text(encoding="utf-8")
    assert r"asks\udc80?" in text
    assert r":boom:\udcff.pdf" in text
    done = mmrh("rank", file, HOSTILE, "--model", model, "--json")
    assert json.loads(done.stdout)["document"] == NAME
    assert "\x07" not in done.stdout


def test_errors_arguments_logs_and_warnings_are_plain_text(
    mmrh: Mmrh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = mmrh("rank", tmp_path / NAME, HOSTILE)
    unknown = mmrh("rank", "--\x1b[31m[/red]", "a", "b")
    assert (missing.code, unknown.code) == (1, 2)
    assert SHOWN_NAME in missing.stderr
    assert r"--\x1b[31m[/red]" in unknown.stderr
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(logging, "_logRecordFactory", logging.LogRecord)
    monkeypatch.setattr(warnings, "formatwarning", None)
    monkeypatch.setattr(cli_main, "stderr", Console(stderr=True, width=300))  # nothing is wrapped
    _log_plainly()
    capsys.readouterr()
    for name in ("mmrh_retriever.any", "another.library"):
        logging.getLogger(name).warning("%s", HOSTILE)
    sys.stderr.write(warnings.formatwarning(HOSTILE, UserWarning, "file.py", 1))
    say(HOSTILE)
    shown = capsys.readouterr().err
    assert shown.count(SHOWN) == 4
    assert "file.py" not in shown, "whoever calls a command has no use for lines of Python"


def test_a_question_longer_than_any_file_name(mmrh: Mmrh, model: Path, tmp_path: Path) -> None:
    page_image(1).save(tmp_path / "page.png")
    question = "How did revenue change? " * 40
    done = mmrh("rank", tmp_path / "page.png", question, "--model", model, "--json")
    assert done.code == 0, done.stderr
    for file in ("n" * 5000, f"{'n' * 5000}.png", "nul\0byte", "nul\0byte.png"):
        done = mmrh("rank", file, question, "--model", model)
        assert (done.code, "Error: PageError" in done.stderr) == (1, True), done.stderr


def test_a_pipe_is_refused_and_not_waited_for(mmrh: Mmrh, model: Path, tmp_path: Path) -> None:
    for name in ("pipe.pdf", "pipe.png", "pipe.json", "pipe.json.gz"):
        pipe = tmp_path / name
        os.mkfifo(pipe)
        asked = ("heads", pipe) if "json" in name else ("rank", pipe, "What?", "--model", model)
        done = mmrh(*asked)
        assert done.code == 1
        assert f"{name}" in done.stderr
        assert "not a plain file, but a pipe or a device" in done.stderr


def test_usage_is_shown_without_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in (([], 2), (["--help"], 0), (["rank", "--top-n", "0", "a", "b"], 2)):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        captured = capsys.readouterr()
        assert int(left.value.code or 0) == code
        assert "Usage" in captured.out + captured.err
