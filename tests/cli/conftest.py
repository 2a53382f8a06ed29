"""``mmrh`` as a function: arguments in, exit code and both streams out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from mmrh_retriever.cli.main import main


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
