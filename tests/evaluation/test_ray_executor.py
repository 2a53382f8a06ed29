"""Evaluation over a local Ray: two workers, one of them killed."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pymupdf
import pytest

from mmrh_retriever import Page
from mmrh_retriever.errors import DataError, HeadSetError
from mmrh_retriever.evaluation import evaluate
from mmrh_retriever.evaluation.mmdocir import MMDocIR
from mmrh_retriever.evaluation.rankers import RandomRanker, RankerSpec, Scores
from mmrh_retriever.evaluation.ray_executor import MAX_ATTEMPTS, ClusterError, RayExecutor

NAMES = [f"{number}.pdf" for number in range(6)]


@pytest.fixture
def data(tmp_path: Path) -> MMDocIR:
    lines = []
    for name in NAMES:
        made = pymupdf.open()
        for word in ("apple", "pear"):
            made.new_page(width=200, height=300).insert_text((20, 50), word)
        made.save(tmp_path / name)
        question = {"Q": f"Where is {name}?", "page_id": [1], "type": "[]"}
        lines.append({"doc_name": name, "domain": "News", "questions": [question, question | {"Q": "pear?"}]})
    (tmp_path / "annotations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return MMDocIR.from_pdfs(tmp_path / "annotations.jsonl", tmp_path)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    found = pytest.importorskip("ray", reason="pip install ray to evaluate over a cluster")
    found.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 1024**2)
    yield found
    found.shutdown()


def deadly(marks: Path, victim: str, times: int) -> Callable[[], dict[str, Any]]:
    """Makes a ranker that notes what it ranks, and whose process dies over one document some times."""

    class Deadly:
        def rank(self, questions: Sequence[str], pages: Sequence[Page]) -> Scores:
            name = str(pages[0].doc_id)
            seen = len(list(marks.glob(f"{name}-*")))
            (marks / f"{name}-{seen}-{os.getpid()}").touch()
            if name == victim and seen < times:
                os.kill(os.getpid(), 9)
            time.sleep(0.2)
            return RandomRanker().rank(questions, pages)

    return lambda: {"random": Deadly()}


@pytest.mark.slow
def test_a_lost_workers_document_is_run_again(ray: Any, data: MMDocIR, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    executor = RayExecutor(data, deadly(marks, NAMES[2], times=1), workers=2, options={"num_cpus": 1})
    found = evaluate(data, {"random": RandomRanker()}, tmp_path / "ray", executor=executor)
    here = evaluate(data, {"random": RandomRanker()}, tmp_path / "here")
    assert found.summaries == here.summaries
    assert (tmp_path / "ray" / "rows.jsonl").read_bytes() == (tmp_path / "here" / "rows.jsonl").read_bytes()
    seen = [path.name.rsplit("-", 2) for path in marks.iterdir()]
    assert sorted(name for name, _, _ in seen) == sorted([*NAMES, NAMES[2]])  # that one twice, no other
    assert len({process for _, _, process in seen}) == 3  # two workers, and the one that took over
    assert ray.is_initialized()


@pytest.mark.slow
def test_a_document_that_kills_every_worker_stops_the_run(ray: Any, data: MMDocIR, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    executor = RayExecutor(data, deadly(marks, NAMES[5], times=99), workers=1)
    with pytest.raises(ClusterError, match=rf"{MAX_ATTEMPTS} workers were lost over 5\.pdf"):
        evaluate(data, {"random": RandomRanker()}, tmp_path / "out", executor=executor)
    kept = [json.loads(line)["document"] for line in (tmp_path / "out" / "journal.jsonl").read_text().splitlines()]
    assert sorted(kept) == NAMES[:5]
    again = evaluate(data, {"random": RandomRanker()}, tmp_path / "out", resume=True)  # here, without a cluster
    assert again.failed == {}


@pytest.mark.slow
def test_what_a_worker_raises_reaches_the_driver(ray: Any, data: MMDocIR, tmp_path: Path) -> None:
    def wrong() -> dict[str, Any]:
        raise HeadSetError("head 99-1 is out of range")

    with pytest.raises(HeadSetError, match="99-1"):
        evaluate(data, {"random": RandomRanker()}, tmp_path / "out", executor=RayExecutor(data, wrong, workers=1))

    def broken() -> dict[str, Any]:
        return {"random": object()}

    with pytest.raises(ClusterError, match="has no attribute 'rank'"):
        evaluate(data, {"random": RandomRanker()}, tmp_path / "bad", executor=RayExecutor(data, broken, workers=1))


@pytest.mark.slow
def test_specs_are_built_by_the_workers(ray: Any, data: MMDocIR, tmp_path: Path) -> None:
    specs = {"bm25": RankerSpec("bm25"), "random": RankerSpec("random", seed=3)}
    found = evaluate(data, specs, tmp_path / "out", executor=RayExecutor(data, specs))
    assert found.summaries == evaluate(data, specs, tmp_path / "here").summaries
    with pytest.raises(ClusterError, match="room for 0"):
        evaluate(data, specs, tmp_path / "gpus", executor=RayExecutor(data, specs, workers=2, gpus=1))


def test_without_ray_the_message_names_the_extra(data: MMDocIR, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'mmrh-retriever\[ray\]'"):
        RayExecutor(data, {"bm25": RankerSpec("bm25")})


def test_a_cluster_needs_workers(data: MMDocIR) -> None:
    with pytest.raises(DataError, match="at least one worker, got 0"):
        RayExecutor(data, {}, workers=0)
