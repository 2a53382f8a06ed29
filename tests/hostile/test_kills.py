"""SIGKILL at random moments, then resume: what a run gives in the end is what an undisturbed one gives."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mmrh_retriever import HeadSet, Page, PageStore
from mmrh_retriever.cli.main import main
from mmrh_retriever.evaluation import evaluate
from mmrh_retriever.evaluation.mmdocir import MMDocIR
from mmrh_retriever.evaluation.rankers import Scores
from tests.cli.conftest import model as model
from tests.evaluation.conftest import data as data
from tests.evaluation.oracle import Oracle
from tests.factories import page_image
from tests.ranking_stub import real

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # newer Pythons warn of forks beside threads
]


def seconds_of(run: Callable[[], object], *, killed_after: float | None = None) -> float:
    """How long a process of its own took; one that was not killed must end well."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        try:
            run()
            os._exit(0)
        except SystemExit as left:
            os._exit(int(left.code or 0))
        finally:
            os._exit(99)
    if killed_after is not None:
        time.sleep(killed_after)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0 or (killed_after is not None and code == -signal.SIGKILL), code
    return time.monotonic() - start


def disturbed(run: Callable[[bool], object], whole: float, seed: int) -> None:
    """A run that is killed four times and then let through; each time it is resumed."""
    rng = random.Random(seed)
    for attempt in range(4):
        seconds_of(lambda attempt=attempt: run(attempt > 0), killed_after=rng.uniform(0, 0.7 * whole))
    seconds_of(lambda: run(True))


class Slow(Oracle):
    """An oracle that takes its time, so that a kill may come in between."""

    def rank(self, questions: Sequence[str], pages: Sequence[Page]) -> Scores:
        time.sleep(0.2)
        return super().rank(questions, pages)


def test_evaluations(data: MMDocIR, tmp_path: Path) -> None:
    whole = seconds_of(lambda: evaluate(data, {"oracle": Slow()}, tmp_path / "whole"))
    disturbed(lambda resume: evaluate(data, {"oracle": Slow()}, tmp_path / "out", resume=True), whole, seed=0)
    assert (tmp_path / "out" / "rows.jsonl").read_bytes() == (tmp_path / "whole" / "rows.jsonl").read_bytes()


def arguments(command: str, model: Path, out: Path) -> list[str]:
    few = ["--lengths", "500", "--examples", "3", "--depths", "2", "--device", "cpu", "--task", "text"]
    return [command, str(model), "--out", str(out), *few]


def test_detections(model: Path, tmp_path: Path) -> None:
    whole = seconds_of(lambda: main(arguments("detect", model, tmp_path / "whole.json")))
    disturbed(lambda _: main([*arguments("detect", model, tmp_path / "out.json"), "--resume"]), whole, seed=1)
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_causal_runs(model: Path, tmp_path: Path) -> None:
    HeadSet.parse("1-0,2-3", n_layers=3, n_heads=4).save(tmp_path / "heads.json")
    more = ["--heads", str(tmp_path / "heads.json"), "--random-seeds", "1"]
    whole = seconds_of(lambda: main([*arguments("causal", model, tmp_path / "whole"), *more]))
    disturbed(lambda _: main([*arguments("causal", model, tmp_path / "out"), *more, "--resume"]), whole, seed=2)
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")


def rows(folder: Path) -> list[str]:
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    return sorted(json.dumps(json.loads(line), sort_keys=True) for line in lines)


def test_stores(tmp_path: Path) -> None:
    pages = [Page(image=page_image(seed), index=seed) for seed in range(12)]
    expected = [(scored.position, scored.score) for scored in real(independent=True).rank("What grew?", pages)]
    rng = random.Random(3)
    for _ in range(5):
        store = PageStore(folder=tmp_path)
        run = real(independent=True, store=store).rank
        seconds_of(lambda run=run: run("What grew?", pages), killed_after=rng.uniform(0, 0.4))
    again = real(independent=True, store=PageStore(folder=tmp_path)).rank("What grew?", pages)
    found = [(scored.position, scored.score) for scored in again]
    assert [position for position, _ in found] == [position for position, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-6)
