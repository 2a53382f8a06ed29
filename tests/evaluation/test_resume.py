"""Evaluations that are killed, resumed, and read back."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mmrh_retriever.errors import DataError
from mmrh_retriever.evaluation import evaluate, read_run
from mmrh_retriever.evaluation.documents import DocumentJob, measure_document
from mmrh_retriever.evaluation.mmdocir import MMDocIR
from mmrh_retriever.evaluation.rankers import RandomRanker, RankerSpec
from tests.evaluation.oracle import Oracle


class Kill(BaseException):
    """Stands for a kill: nothing catches it."""


def _killed_at(parts_before: int, data: MMDocIR, rankers: dict[str, Any]) -> Any:
    def executor(jobs: Sequence[DocumentJob]) -> Iterator[Any]:
        done = 0
        for job in jobs:
            for part in measure_document(data, job, rankers, "page"):
                if done == parts_before:
                    raise Kill
                done += 1
                yield part

    return executor


@pytest.mark.parametrize("before", [0, 1, 3, 5])
def test_a_killed_run_ends_with_the_same_rows(data: MMDocIR, tmp_path: Path, before: int) -> None:
    rankers = {"oracle": Oracle(), "random": RandomRanker()}
    evaluate(data, rankers, tmp_path / "whole")
    with pytest.raises(Kill):
        evaluate(data, rankers, tmp_path / "out", executor=_killed_at(before, data, rankers))
    kept = (tmp_path / "out" / "journal.jsonl").read_bytes()
    assert kept.count(b"\n") == before
    assert not (tmp_path / "out" / "rows.jsonl").exists()
    oracle = Oracle()
    evaluate(data, rankers | {"oracle": oracle}, tmp_path / "out", resume=True)
    assert len(oracle.asked) == 3 - (before + 1) // 2
    assert (tmp_path / "out" / "rows.jsonl").read_bytes() == (tmp_path / "whole" / "rows.jsonl").read_bytes()
    assert (tmp_path / "out" / "journal.jsonl").read_bytes().startswith(kept)


def _dies_at(step: int, run: Callable[[], object]) -> bool:
    """Whether a process of its own, sent SIGKILL when it touches the disk for the ``step``-th time, was killed."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.WIFSIGNALED(status)
    left = itertools.count(step, -1)

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    try:
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "mkdir"), (Path, "unlink")):
            setattr(owner, name, watched(getattr(owner, name)))
        run()
    finally:
        os._exit(0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork, to kill a process at an exact moment")
def test_a_process_killed_at_any_moment_ends_with_the_same_rows(data: MMDocIR, tmp_path: Path) -> None:
    rankers = {"oracle": Oracle(), "random": RandomRanker()}
    evaluate(data, rankers, tmp_path / "whole")
    names = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*"))
    steps = 0
    for steps in itertools.count():
        out = tmp_path / str(steps)
        if not _dies_at(steps, lambda out=out: evaluate(data, rankers, out)):
            break
        journal = out / "journal.jsonl"
        kept = journal.read_bytes() if journal.is_file() else b""
        evaluate(data, rankers, out, resume=True)
        assert (out / "rows.jsonl").read_bytes() == (tmp_path / "whole" / "rows.jsonl").read_bytes()
        assert sorted(path.relative_to(out) for path in out.rglob("*")) == names  # nothing half written is left
        assert journal.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    assert steps > 12  # six lines of the journal, and three files that are written and moved


def test_an_unfinished_line_is_no_result(data: MMDocIR, tmp_path: Path) -> None:
    evaluate(data, {"oracle": Oracle()}, tmp_path / "out")
    journal = tmp_path / "out" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    again = Oracle()
    evaluate(data, {"oracle": again}, tmp_path / "out", resume=True)
    assert again.asked == ["scan.pdf"]


def test_a_finished_run_is_not_run_again(data: MMDocIR, tmp_path: Path) -> None:
    evaluate(data, {"oracle": Oracle()}, tmp_path / "out")
    again = Oracle()
    evaluate(data, {"oracle": again}, tmp_path / "out", resume=True)
    assert again.asked == []
    with pytest.raises(DataError, match="holds a ranking evaluation already"):
        evaluate(data, {"oracle": Oracle()}, tmp_path / "out")


def test_rankers_may_be_added_to_a_run(data: MMDocIR, tmp_path: Path) -> None:
    evaluate(data, {"oracle": Oracle()}, tmp_path / "out")
    found = evaluate(data, {"oracle": Oracle(), "random": RankerSpec("random")}, tmp_path / "out", resume=True)
    assert set(found.summaries) == {"oracle", "random"}
    assert set(json.loads((tmp_path / "out" / "settings.json").read_text())["settings"]["rankers"]) == {
        "oracle",
        "random",
    }


def test_results_of_rankers_that_are_left_out_stay(data: MMDocIR, tmp_path: Path) -> None:
    random = RankerSpec("random")
    whole = evaluate(data, {"oracle": Oracle(), "random": random}, tmp_path / "out")
    rows, summary = ((tmp_path / "out" / name).read_bytes() for name in ("rows.jsonl", "summary.json"))
    fewer = evaluate(data, {"random": random}, tmp_path / "out", resume=True)
    assert fewer == whole == read_run(tmp_path / "out")
    assert list(fewer.summaries) == ["oracle", "random"]
    assert rows == (tmp_path / "out" / "rows.jsonl").read_bytes()
    assert summary == (tmp_path / "out" / "summary.json").read_bytes()
    more = evaluate(data, {"bm25": RankerSpec("bm25"), "random": random}, tmp_path / "out", resume=True)
    assert list(more.summaries) == ["bm25", "random", "oracle"]  # a new comparison comes first
    assert more.parts["oracle"] == whole.parts["oracle"]


def test_a_ranker_left_out_before_it_was_finished_counts_nowhere(
    data: MMDocIR, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluate(data, {"oracle": Oracle()}, tmp_path / "out")
    journal = tmp_path / "out" / "journal.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-1]))
    found = evaluate(data, {"random": RankerSpec("random")}, tmp_path / "out", resume=True)
    assert list(found.summaries) == ["random"]
    assert "oracle stays out: 1 documents are left to run" in caplog.text
    again = evaluate(data, {"oracle": Oracle()}, tmp_path / "out", resume=True)
    assert set(again.summaries) == {"oracle", "random"}


def test_other_settings_are_refused_with_the_difference(data: MMDocIR, tmp_path: Path) -> None:
    evaluate(data, {"random": RankerSpec("random", seed=1)}, tmp_path / "out", settings={"max_pixels": 7})
    with pytest.raises(DataError, match=r"rankers\.random\.seed: was 1, now 2"):
        evaluate(data, {"random": RankerSpec("random", seed=2)}, tmp_path / "out", resume=True)
    with pytest.raises(DataError, match=r"dataset\.max_pixels: was 7, now 8") as error:
        evaluate(data.first(2), {"x": Oracle()}, tmp_path / "out", resume=True, settings={"max_pixels": 8})
    assert "dataset.documents: was 3, now 2" in str(error.value)
    with pytest.raises(DataError, match="level: was 'page', now 'layout'"):
        evaluate(data, {"x": Oracle()}, tmp_path / "out", resume=True, level="layout", settings={"max_pixels": 7})


def test_folders_that_hold_something_else_are_left_alone(data: MMDocIR, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not empty and holds no ranking evaluation"):
        evaluate(data, {"oracle": Oracle()}, tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is a file"):
        evaluate(data, {"oracle": Oracle()}, tmp_path / "file")


def test_finished_runs_are_read_back(data: MMDocIR, tmp_path: Path) -> None:
    found = evaluate(data, {"oracle": Oracle(), "random": RankerSpec("random")}, tmp_path / "out")
    again = read_run(tmp_path / "out")
    assert again == found
    assert list(again.parts) == ["oracle", "random"]
    journal = tmp_path / "out" / "journal.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match="holds 2 documents under random, expected 3"):
        read_run(tmp_path / "out")
    (tmp_path / "out" / "summary.json").unlink()
    with pytest.raises(DataError, match="was not finished"):
        read_run(tmp_path / "out")
    with pytest.raises(DataError, match=r"settings\.json: no such file.*settings file of a ranking evaluation"):
        read_run(tmp_path)


def test_another_kind_of_run_is_not_read(data: MMDocIR, tmp_path: Path) -> None:
    evaluate(data, {"oracle": Oracle()}, tmp_path / "out")
    settings = tmp_path / "out" / "settings.json"
    settings.write_text(settings.read_text().replace("mmrh-evaluation", "another"))
    with pytest.raises(DataError, match="holds another kind of run"):
        read_run(tmp_path / "out")


def test_the_former_name_of_the_executor(data: MMDocIR, tmp_path: Path) -> None:
    rankers = {"oracle": Oracle()}
    with pytest.warns(DeprecationWarning, match="executor="), pytest.raises(Kill):
        evaluate(data, rankers, tmp_path / "out", engine=_killed_at(0, data, rankers))
