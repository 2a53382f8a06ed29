"""The true shapes of Qwen3-VL on a CPU, with random weights: seconds and peak memory beside plain transformers.

    python benchmarks/real_shapes.py --threads 2                                # Qwen3-VL-2B, about 6 GB
    python benchmarks/real_shapes.py --threads 2 --model random-8b --layers 4   # layers of Qwen3-VL-8B, about 4 GB

All sides run on the same weights and pages, and take turns: a bare forward pass over pages and question; our first and
our further question; the paper's procedure, two full passes with the rows of all heads; and one full pass of
transformers' eager attention that keeps all of it. CPU seconds are those of all threads together: they hold better than
seconds where other work runs beside. Peak memory is what a run takes above what the process held before it (Linux). The
last table puts `mmrh plan`'s figures beside those of the run.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mmrh_retriever import EncodedPages, Reranker
from mmrh_retriever.benchmark.flops import counted_flops
from mmrh_retriever.benchmark.pairs import PlainProcedure, rank_anew, sample_pages, sample_questions
from mmrh_retriever.benchmark.plan import QUESTION, plan
from mmrh_retriever.benchmark.random_models import SHAPES, random_reranker
from mmrh_retriever.encoding.page_store import PageStore
from mmrh_retriever.encoding.window import Window
from mmrh_retriever.model.vision import joined_inputs
from mmrh_retriever.runs.tables import Table

ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(1024**2),
    "MALLOC_TRIM_THRESHOLD_": str(1024**2),
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Freed memory goes back to the system at once, so that it isn't counted as in use; waiting threads take no time."""
SIDE = (510, 660)


def memory(field: str) -> int:
    """Bytes of resident memory: ``VmRSS`` now, ``VmHWM`` at the most since :func:`forget_peak`."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def eager_pass(reranker: Reranker, procedure: PlainProcedure, question: str) -> float:
    """One full pass of transformers alone, with eager attention, all of it kept. Gives one weight."""
    backbone = reranker.backbone
    segments = [*procedure.prompt(), reranker.prompter.question_segment(question)]
    ids = torch.tensor([[number for segment in segments for number in segment.ids]])
    model = backbone.model
    before = model.config.text_config._attn_implementation
    model.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
    try:
        with torch.inference_mode():
            output = backbone.base(
                input_ids=ids,
                mm_token_type_ids=(ids == backbone.config.image_token_id).int(),
                output_attentions=True,
                use_cache=False,
                **joined_inputs(backbone, segments),
            )
        return float(output.attentions[-1][0, 0, -1, 0])
    finally:
        model.set_attn_implementation({"text_config": before, "vision_config": "sdpa"})


def measure(reranker: Reranker, pages: int, rounds: int) -> tuple[Table, Table]:
    """Seconds and memory of all sides, and the plan beside the run."""
    images = sample_pages(pages, side=SIDE)
    question = sample_questions(1)[0]
    procedure = PlainProcedure(reranker, images)
    encoded = reranker.encode(images)
    whole = [*procedure.prompt(), reranker.prompter.question_segment(question)]
    runs: dict[str, Callable[[], object]] = {
        "a bare forward pass, all layers": lambda: procedure.full_pass(whole, None),
        "ours, first question": lambda: rank_anew(reranker, question, images),
        "ours, each further question": lambda: encoded.rank(question),
        "the paper's procedure per question: two full passes": lambda: procedure.rank(question),
        "one eager pass that keeps all attention": lambda: eager_pass(reranker, procedure, question),
    }
    encoded.rank(question)  # the null question is remembered
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    busy: dict[str, list[float]] = {name: [] for name in runs}
    above: dict[str, list[int]] = {name: [] for name in runs}
    for number in range(rounds):
        for name, run in runs.items():
            reranker.vision.clear()
            held = memory("VmRSS")
            forget_peak()
            started, worked = time.perf_counter(), time.process_time()
            run()
            seconds[name].append(time.perf_counter() - started)
            busy[name].append(time.process_time() - worked)
            above[name].append(memory("VmHWM") - held)
            print(
                f"round {number + 1}, {name}: {seconds[name][-1]:.2f} s, CPU {busy[name][-1]:.2f} s",
                file=sys.stderr,
                flush=True,
            )
    bare = statistics.median(busy["a bare forward pass, all layers"])
    weights = sum(weight.nbytes for weight in reranker.backbone.model.parameters())
    measured = Table.of(
        f"{pages} pages, {encoded.tokens} tokens, {rounds} rounds, {torch.get_num_threads()} threads; weights "
        f"{weights / 1024**3:.2f} GiB in bfloat16",
        ("", "CPU seconds", "of bare passes", "seconds", "peak memory above, MiB"),
        [
            (
                name,
                spread(busy[name]),
                f"{statistics.median(busy[name]) / bare:.3f}",
                spread(taken),
                f"{max(above[name]) / 1024**2:.0f}",
            )
            for name, taken in seconds.items()
        ],
    )
    return measured, beside_plan(reranker, procedure, encoded)


def spread(seconds: list[float]) -> str:
    """The median, the lowest and the highest."""
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"


def beside_plan(reranker: Reranker, procedure: PlainProcedure, encoded: EncodedPages) -> Table:
    """The plan, made from a model without weights, beside what the run takes."""
    found = plan(without_weights(reranker), pages=len(encoded), page_size=SIDE, page_memory=0)
    whole = [*procedure.prompt(), reranker.prompter.question_segment(QUESTION)]
    reranker.vision.clear()
    windows: list[Window] = []
    storing = reranker.with_store(PageStore(0))  # a window that is only asked keeps less of the last layer
    encode = counted_flops(lambda: windows.extend(storing.engine().windows(storing.candidates(procedure.pages))))
    kept = sum(part.nbytes for window in windows for part in window.cache.part(0, len(window)))
    rows = [
        ("bytes of weights", found.weight_bytes, sum(one.nbytes for one in reranker.backbone.model.parameters())),
        ("tokens", found.tokens, sum(len(window) for window in windows)),
        ("bytes of kept keys and values", found.kept_bytes, kept),
        ("operations, encoding", found.encode_flops, encode),
        ("operations, further question", found.question_flops, counted_flops(lambda: encoded.rank(QUESTION))),
        ("operations, one full pass", found.plain_flops // 2, counted_flops(lambda: procedure.full_pass(whole, None))),
    ]
    return Table.of(
        "`mmrh plan` beside the run",
        ("", "planned", "measured", "planned / measured"),
        [(name, f"{said:,}", f"{taken:,}", f"{said / taken:.4f}") for name, said, taken in rows],
    )


def without_weights(reranker: Reranker) -> Reranker:
    """The same model without content."""
    with torch.device("meta"):
        made = type(reranker.backbone.model)._from_config(reranker.backbone.config, dtype=torch.bfloat16).eval()
    prompter = reranker.prompter
    return Reranker(made, (prompter.tokenizer, prompter.image_processor), reranker.heads, check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random-2b", choices=list(SHAPES))
    parser.add_argument("--layers", type=int, help="so many of the decoder's layers, each complete; all if left out")
    parser.add_argument("--pages", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    if not ENVIRONMENT.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ENVIRONMENT)  # noqa: S606 - ourselves
    torch.set_num_threads(args.threads)
    if args.layers:
        SHAPES[args.model]["text_config"]["num_hidden_layers"] = args.layers
    reranker = random_reranker(args.model, device="cpu", dtype="bfloat16")
    print(f"{args.model}, {reranker.backbone.layers} layers\n")
    print("\n".join(table.markdown() for table in measure(reranker, args.pages, args.rounds)))


if __name__ == "__main__":
    main()
