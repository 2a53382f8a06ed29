"""Many threads on one reranker, Ctrl+C on the command line, and asynchronous calls that are cancelled."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmrh_retriever import Page, PageStore
from mmrh_retriever.cli.main import main
from mmrh_retriever.ranking.reranker import Reranker
from tests.cli.conftest import model as model
from tests.cli.test_evaluate import folder as folder
from tests.cli.test_evaluate import pdfs as pdfs
from tests.factories import page_image
from tests.ranking_stub import real

QUESTIONS = [f"What grew in {year}?" for year in range(2000, 2008)]


@pytest.mark.parametrize("store", [None, PageStore()])
def test_eight_threads_rank_as_one_does(store: PageStore | None) -> None:
    pages = [Page(image=page_image(seed), index=seed) for seed in range(5)]
    alone = {question: [it.score for it in real(independent=True).rank(question, pages)] for question in QUESTIONS}
    reranker = real(independent=True, store=store)
    start = threading.Barrier(8)

    def rank(question: str) -> list[list[float]]:
        start.wait()
        return [[it.score for it in reranker.rank(question, pages)] for _ in range(3)]

    with ThreadPoolExecutor(8) as pool:
        for question, found in zip(QUESTIONS, pool.map(rank, QUESTIONS), strict=True):
            for scores in found:
                assert scores == pytest.approx(alone[question], abs=1e-6)


def interrupted(run: Callable[[], object], ready: Path, shown: Path) -> int:
    """The exit code of a process that is sent SIGINT once it has made the file ``ready``."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(shown, os.O_WRONLY | os.O_CREAT), 2)
        sys.stderr = os.fdopen(2, "w")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            run()
        except SystemExit as left:
            sys.stderr.flush()
            os._exit(int(left.code or 0))
        finally:
            os._exit(99)
    end = time.monotonic() + 60
    while not ready.exists() and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(child, signal.SIGINT)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # newer Pythons warn of forks beside threads
@pytest.mark.parametrize("command", ["rank", "evaluate"])
def test_an_interrupt_ends_with_130_and_no_traceback(
    command: str, model: Path, folder: Path, pdfs: list[object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"

    def endless(*_: object, **__: object) -> None:
        ready.touch()
        while True:
            time.sleep(0.01)

    monkeypatch.setattr(Reranker, "engine", endless)
    rest = [folder / "a.pdf", "What grew?"] if command == "rank" else ["mmdocir", *pdfs]
    arguments = [command, *map(str, rest), "--model", str(model)]
    code = interrupted(lambda: main(arguments), ready, tmp_path / "stderr")
    said = (tmp_path / "stderr").read_text()
    assert ready.exists()
    assert code == 130, said
    assert "Traceback" not in said


def test_a_cancelled_call_leaves_the_reranker_usable() -> None:
    reranker = real()
    pages = [Page(image=page_image(seed), index=seed) for seed in range(6)]
    expected = [it.score for it in reranker.rank(QUESTIONS[0], pages)]

    async def run() -> list[float]:
        for delay in (0.0, 0.01, 0.05):
            task = asyncio.create_task(reranker.arank(QUESTIONS[1], pages))
            await asyncio.sleep(delay)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return [it.score for it in await reranker.arank(QUESTIONS[0], pages)]

    assert asyncio.run(run()) == pytest.approx(expected, abs=1e-6)
