"""Where the time goes: seconds by stage and by torch operator, of a first, a further and 16 further questions.

    python benchmarks/where_time_goes.py                       # the bundled model
    python benchmarks/where_time_goes.py --model random        # random weights: Qwen3-VL's architecture

A stage holds its own time only: the time of a stage inside it counts there. The second table of each case comes from
torch's own profiler: operators by the time spent in them and not in those that they call.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile

from mmrh_retriever.benchmark.pairs import rank_anew, sample_pages, sample_questions
from mmrh_retriever.benchmark.random_models import reranker_to_measure
from mmrh_retriever.model import attention_seam
from mmrh_retriever.model.prompts import Prompter
from mmrh_retriever.model.vision import Vision

OPERATORS = 8


class Stages:
    """Seconds by stage, without those of the stages inside."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inside = threading.local()

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """The time spent in here counts for this stage."""
        outer: list[float] = getattr(self._inside, "taken", [0.0])
        self._inside.taken = mine = [0.0]
        started = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - started
            self.seconds[name] += took - mine[0]
            outer[0] += took
            self._inside.taken = outer

    def around(self, owner: Any, attribute: str, name: str) -> Any:
        """A patch under which calls of a function count for a stage."""
        original = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.of(name):
                return original(*args, **kwargs)

        return mock.patch.object(owner, attribute, timed)


def by_stage(decoder: torch.nn.Module, run: Callable[[], object]) -> tuple[float, dict[str, float]]:
    """Wall seconds, and each stage's share of them in seconds."""
    stages = Stages()
    with ExitStack() as stack:
        for owner, attribute, name in (
            (Prompter, "page_segment", "images to patches, prompt"),
            (Vision, "_run", "vision tower"),
            (type(decoder), "forward", "decoder but attention"),
            (attention_seam.AttentionSeam, "attend", "attention"),
            (attention_seam, "record", "recording rows"),
        ):
            stack.enter_context(stages.around(owner, attribute, name))
        started = time.perf_counter()
        with stages.of("everything else"):
            run()
        wall = time.perf_counter() - started
    return wall, dict(stages.seconds)


def by_operator(run: Callable[[], object]) -> list[tuple[str, float, int]]:
    """Torch's operators with the most time of their own: name, share of all operators' time, calls."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    return [(event.key, event.self_cpu_time_total / whole, event.count) for event in events[:OPERATORS]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model, or random, random-2b or random-8b; the bundled one if left out")
    parser.add_argument("--dtype", help="bfloat16 or float32")
    parser.add_argument("--pages", type=int, default=20)
    chosen = parser.parse_args()
    reranker = reranker_to_measure(chosen.model, dtype=chosen.dtype)
    pages = sample_pages(chosen.pages)
    questions = sample_questions(16)
    encoded = reranker.encode(pages)
    cases: dict[str, Callable[[], object]] = {
        "first question": lambda: rank_anew(reranker, questions[0], pages),
        "further question": lambda: encoded.rank(questions[0]),
        "16 further questions together": lambda: encoded.rank_many(questions),
    }
    kind = str(reranker.backbone.model.dtype).removeprefix("torch.")
    print(f"{len(pages)} pages, {encoded.tokens} tokens, {kind}, {torch.get_num_threads()} threads\n")
    for name, run in cases.items():
        run()
        wall, stages = by_stage(reranker.backbone.decoder, run)
        print(f"### {name}: {wall:.3f} s\n\n| stage | seconds | share, % |\n|---|---:|---:|")
        for stage, seconds in sorted(stages.items(), key=lambda item: -item[1]):
            print(f"| {stage} | {seconds:.4f} | {100 * seconds / wall:.0f} |")
        print("\n| operator | share of operators' time, % | calls |\n|---|---:|---:|")
        for operator, share, calls in by_operator(run):
            print(f"| `{operator}` | {100 * share:.0f} | {calls} |")
        print(flush=True)


if __name__ == "__main__":
    main()
