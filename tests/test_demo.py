"""The demo runs from start to end with the bundled model and writes its picture."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

import mmrh_retriever
from mmrh_retriever.cli.main import main

DEMO = Path(__file__).parent.parent / "examples" / "demo.py"
BUNDLED = Path(mmrh_retriever.__file__).parent / "data" / "reader" / "config.json"


needs_bundled = pytest.mark.skipif(not BUNDLED.is_file(), reason="the bundled model is not in this checkout")


@pytest.mark.slow
@needs_bundled
def test_what_the_readme_shows_is_what_the_command_gives(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = DEMO.parents[1]
    shown = re.findall(r"^\$ mmrh (rank .*)\n(\{.*\})$", (root / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    monkeypatch.chdir(root)
    assert shown
    for command, line in shown:
        with pytest.raises(SystemExit):
            main(shlex.split(command, comments=True))
        given, expected = json.loads(capsys.readouterr().out), json.loads(line)
        assert given == expected | {name: pytest.approx(expected[name], rel=0.02) for name in ("score", "probability")}


@pytest.mark.slow
@needs_bundled
def test_the_demo_ranks_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--out", str(tmp_path)])
    demo.main()
    shown = capsys.readouterr().out
    answers = re.findall(r"the answer is on page (\d+);", shown)
    assert len(answers) == 3
    assert re.findall(r"^  1\. page (\d+)", shown, re.MULTILINE) == answers
    with Image.open(tmp_path / "heat_map.png") as picture:
        assert min(picture.size) > 500


@pytest.mark.slow
@needs_bundled
def test_files_are_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("ask_files", DEMO.parent / "ask_files.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    (tmp_path / "broken.pdf").write_bytes(b"no PDF")
    example.main(
        [str(DEMO.parent / "sample_report.pdf"), str(tmp_path / "broken.pdf"), "--folder", str(tmp_path / "kept")]
    )
    shown = capsys.readouterr().out
    sample = json.loads((DEMO.parent / "sample_questions.json").read_text(encoding="utf-8"))[:3]
    first = re.findall(r"^  1\. sample_report\.pdf, page (\d+)", shown, re.MULTILINE)
    assert [int(page) for page in first] == [one["page"] for one in sample]
    assert "Left out: broken.pdf" in shown
