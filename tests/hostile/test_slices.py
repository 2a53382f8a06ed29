"""A slice of ``make hostile`` with fixed seeds, and the suite's own ability to see failures."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from mmrh_retriever import PageError
from tests.hostile import outcomes
from tests.hostile.outcomes import run_bounded
from tests.hostile.run import CLASSES

INPUTS = 250


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # newer Pythons warn of forks beside threads
@pytest.mark.parametrize("name", CLASSES)
def test_hostile_inputs_are_read_right_or_refused(name: str) -> None:
    case, share = CLASSES[name]
    found = run_bounded(case, range(100_000, 100_000 + max(4, share * INPUTS // 100)))
    assert not [(outcome.seed, outcome.why) for outcome in found if outcome.kind == "failed"]


def _bad(rng: random.Random, folder: Path) -> None:
    kind = rng.randrange(5)
    if kind == 0:
        raise PageError("A page is damaged. Save it again.")
    if kind == 1:
        raise KeyError("raw")
    if kind == 2:
        time.sleep(60)
    if kind == 3:
        bytearray(2 * outcomes.MEMORY)
    outcomes.expect(kind == 4, "a wrong result")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_wrong_slow_or_large_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "SECONDS", 1.0)
    found = {random.Random(it.seed).randrange(5): it for it in run_bounded(_bad, range(16))}
    assert [found[kind].kind for kind in range(5)] == ["refused", "failed", "failed", "failed", "right"]
    assert [part in found[kind].why for kind, part in ((1, "KeyError"), (2, "over 1 s"), (3, "MemoryError"))] == [
        True
    ] * 3
