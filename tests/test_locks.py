"""Forks: a child ranks, whatever locks the threads of its parent held."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest

from mmrh_retriever import Page, PageStore, Reranker
from mmrh_retriever.locks import Lock
from mmrh_retriever.model import attention_seam, tokenizing
from mmrh_retriever.ranking import shared_models
from tests.factories import page_image, tiny

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # newer Pythons warn of forks beside threads
]


def child_does(action: Callable[[], bool], seconds: float = 60) -> bool:
    """What an action gives in a forked child; a child that hangs is ended and fails."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if action() else 1)
        finally:
            os._exit(2)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")


def test_a_child_forked_while_a_thread_ranks_can_rank() -> None:
    model = tiny("qwen3_vl")
    store = PageStore()
    reranker = Reranker(model.model, (model.tokenizer, model.image_processor), "all", store=store)
    pages = [Page(image=page_image(1)), Page(text="Revenue grew.")]
    scores = [scored.score for scored in reranker.rank("What grew?", pages)]
    locks = [reranker.backbone.seam.lock, reranker.vision._lock, store._lock, shared_models._SHELF.lock]
    locks += [attention_seam._INSTALL_LOCK, tokenizing._COPIES_LOCK]
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        for lock in locks:
            lock.__enter__()
        held.set()
        done.wait()
        for lock in locks:
            lock.__exit__()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()

    def ranks_alike() -> bool:
        again = Reranker(model.model, (model.tokenizer, model.image_processor), "all", store=store)
        for one in (reranker, again):
            found = [scored.score for scored in one.rank("What grew?", pages)]
            if found != pytest.approx(scores, abs=1e-6):
                return False
        return True

    try:
        assert child_does(ranks_alike)
    finally:
        done.set()
        thread.join()


def test_the_thread_that_forks_goes_on_holding_its_lock() -> None:
    lock = Lock()

    def leaves_it() -> bool:
        lock.__exit__()
        with pytest.raises(RuntimeError):
            lock.__exit__()
        return True

    with lock:
        assert child_does(leaves_it)
