"""One model a process: loaded once, shared by threads and head choices, let go on request."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrh_retriever import Page, Reranker
from mmrh_retriever.errors import HeadSetError
from mmrh_retriever.ranking import shared_models
from mmrh_retriever.ranking.shared_models import release_shared_models, shared_reranker
from tests import factories

QUESTION = "How did revenue change in the last year?"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return factories.tiny("qwen3_vl").save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    release_shared_models()
    yield
    release_shared_models()


def test_one_model_for_equal_settings_and_any_heads(saved: Path) -> None:
    first = shared_reranker(saved, heads="all")
    model = first.backbone.model
    for other in (
        shared_reranker(str(saved), heads="all", token_budget=2048),
        shared_reranker(saved / ".." / saved.name, heads="all", device="cpu"),
        shared_reranker(saved, heads=first.heads[:2], calibrate=False, local_files_only=False),
    ):
        assert other.backbone.model is model
    assert other.heads != first.heads
    assert not other.settings.calibrate


def test_pages_stand_alone_where_the_models_config_says_so(saved: Path) -> None:
    one = shared_reranker(saved, heads="all")
    assert not one.independent
    assert shared_reranker(saved, heads="all", independent=True).independent
    one.backbone.config.mmrh_independent = True
    assert shared_reranker(saved, heads="all").independent
    assert not shared_reranker(saved, heads="all", independent=False).independent


def test_the_models_config_may_name_a_token_budget(saved: Path) -> None:
    one = shared_reranker(saved, heads="all")
    assert (one.token_budget, one.settings.final_round) == (32_768, 10)
    one.backbone.config.mmrh_token_budget = 5000
    assert shared_reranker(saved, heads="all").token_budget == 5000
    assert shared_reranker(saved, heads="all", token_budget=900).token_budget == 900


def test_other_loading_settings_load_another_model(saved: Path) -> None:
    one = shared_reranker(saved, heads="all")
    two = shared_reranker(saved, heads="all", dtype="bfloat16")
    three = shared_reranker(saved, heads="all", dtype=torch.bfloat16)
    assert one.backbone.model is not two.backbone.model
    assert two.backbone.model is three.backbone.model
    assert two.backbone.model.dtype is torch.bfloat16


def test_scores_are_those_of_a_reranker_of_its_own(saved: Path) -> None:
    pages = [factories.page_image(seed) for seed in range(3)]
    own = Reranker.from_pretrained(saved, heads="all").rank(QUESTION, pages)
    assert [p.score for p in shared_reranker(saved, heads="all").rank(QUESTION, pages)] == [p.score for p in own]


def test_threads_that_ask_at_once_load_once(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []

    def slow(path: str, **loading: Any) -> Any:
        loads.append(path)
        time.sleep(0.2)
        return load(path, **loading)

    load = shared_models.load_model
    monkeypatch.setattr(shared_models, "load_model", slow)
    barrier = threading.Barrier(8)

    def ask() -> Reranker:
        barrier.wait()
        return shared_reranker(saved, heads="all")

    with ThreadPoolExecutor(8) as pool:
        found = [future.result() for future in [pool.submit(ask) for _ in range(8)]]
    assert len(loads) == 1
    assert len({id(reranker.backbone.model) for reranker in found}) == 1


def test_eight_threads_give_the_scores_of_one(saved: Path) -> None:
    questions = [f"{QUESTION} Case {number}." for number in range(8)]
    pages = [*map(factories.page_image, range(4)), Page(text="Revenue grew by nine percent.")]
    everything = shared_reranker(saved, heads="all")
    some = shared_reranker(saved, heads=everything.heads[::2])

    def ask(number: int) -> list[tuple[int, float]]:
        reranker = (everything, some)[number % 2]
        return [(page.position, page.score) for page in reranker.rank(questions[number], pages)]

    alone = [ask(number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(8)))
        again = list(pool.map(ask, range(8)))
    assert together == again == alone


def test_a_failed_load_is_not_kept(saved: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises((OSError, ValueError)):
            shared_reranker(tmp_path / "nothing here", local_files_only=True)
    with pytest.raises(HeadSetError):
        shared_reranker(saved)
    assert shared_reranker(saved, heads="all").rank(QUESTION, [factories.page_image(0)])


def test_released_models_are_freed(saved: Path) -> None:
    reranker = shared_reranker(saved, heads="all")
    model = weakref.ref(reranker.backbone.model)
    release_shared_models()
    assert shared_reranker(saved, heads="all").backbone.model is not model()
    del reranker
    gc.collect()
    assert model() is None


def test_settings_for_loading_are_compared_by_value() -> None:
    class Quantization:
        def to_dict(self) -> dict[str, Any]:
            return {"bits": 4}

    one = shared_models._plain({"a": [1, {"b": torch.float16}], "q": Quantization()})
    two = shared_models._plain({"q": Quantization(), "a": (1, {"b": "float16"})})
    assert one == two
    assert one != shared_models._plain({"q": Quantization(), "a": (1, {"b": "float32"})})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_lock_held_at_a_fork_does_not_block_the_child() -> None:
    with shared_models._SHELF.lock:
        child = multiprocessing.get_context("fork").Process(target=release_shared_models)
        child.start()
        child.join(20)
        assert child.exitcode == 0
