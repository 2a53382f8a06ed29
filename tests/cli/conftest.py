"""``mmrh`` as a function: arguments in, exit code and both streams out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmrh_retriever import HeadSet
from mmrh_retriever.cli.main import main
from mmrh_retriever.model.loading import HEADS_FILE
from tests.factories import tiny


@dataclass
class Done:
    code: int
    stdout: str
    stderr: str


Mmrh = Callable[..., Done]


@pytest.fixture
def mmrh(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Mmrh:
    monkeypatch.setenv("COLUMNS", "240")  # messages in one line

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Done(int(left.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    fresh = tiny("qwen3_vl")
    for part in (fresh.model, fresh.tokenizer, fresh.image_processor):
        part.save_pretrained(folder)
    HeadSet.all_heads(3, 4).save(folder / HEADS_FILE)
    return folder
