"""What may come of a hostile input, and the worker processes that bound its time and memory.

A case is given a seeded generator and an empty folder. It makes one input, hands it to the package and returns. Its
outcome is ``right`` (what came back is what an oracle expects, or is well formed where none can know), ``refused`` (a
:class:`MMRHError`, raised where the case allows one), or a failure: any other exception, a wrong result, too much time
or memory, a process that died.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from mmrh_retriever.errors import MMRHError

SECONDS = 20.0
"""Wall clock for one input."""
MEMORY = 1536 * 1024**2
"""Bytes of address space that inputs may take beside what the process has when it starts."""
AT_ONCE = 100
"""Inputs that one worker process takes, so that what they leave behind adds up."""

Case = Callable[[random.Random, Path], None]


class Wrong(AssertionError):  # noqa: N818 - an outcome's name
    """What came back is not what the oracle expects."""


@dataclass(frozen=True)
class Outcome:
    """What came of the input of one seed; ``why`` describes a failure."""

    seed: int
    kind: str
    why: str = ""


def expect(true: object, problem: str) -> None:
    """Raise :class:`Wrong` unless something is so."""
    if not true:
        raise Wrong(problem)


def outcome_of(case: Case, seed: int, parent: Path) -> Outcome:
    """Run one input in this process."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case(random.Random(seed), folder)
    except MMRHError as error:
        plain = str(error).encode("utf-8", "backslashreplace").decode()
        if not 0 < len(plain) < 10_000:
            return Outcome(seed, "failed", f"a message of {len(plain)} characters")
        return Outcome(seed, "refused")
    except Exception:  # noqa: BLE001 - all of these are failures
        return Outcome(seed, "failed", traceback.format_exc(limit=-4).encode("utf-8", "backslashreplace").decode())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Outcome(seed, "right")


def run_bounded(case: Case, seeds: Sequence[int]) -> list[Outcome]:
    """Run inputs in worker processes, each with limits of memory and, for every input, of time."""
    found: list[Outcome] = []
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        while len(found) < len(seeds):
            waiting = list(seeds[len(found) : len(found) + AT_ONCE])
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(case, waiting, Path(name), theirs))
            process.start()
            theirs.close()
            for seed in waiting:
                try:
                    found.append(ours.recv() if ours.poll(SECONDS) else Outcome(seed, "failed", f"over {SECONDS:g} s"))
                except EOFError:
                    process.join()
                    found.append(Outcome(seed, "failed", f"the process ended with {process.exitcode}"))
                if found[-1].why.startswith(("over", "the process")):
                    break
            process.kill()
            process.join()
    return found


def _work(case: Case, seeds: Sequence[int], folder: Path, answers: Connection) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - until the process ends
    started_with = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (started_with + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for seed in seeds:
        answers.send(outcome_of(case, seed, folder))
