"""``mmrh bench``: our speed against plain transformers, both measured in one run."""

from __future__ import annotations

from typing import Annotated

import typer

from mmrh_retriever.cli.options import ModelOptions, OutputOptions, grouped, load_reranker, stderr
from mmrh_retriever.runs.tables import Table


@grouped
def bench_command(
    model: ModelOptions,
    output: OutputOptions,
    pages: Annotated[int, typer.Option(min=1, help="Page images to rank.")] = 20,
    questions: Annotated[int, typer.Option(min=1, help="Questions asked together and singly.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="How often each pair is measured.")] = 3,
    max_layer: Annotated[
        int | None, typer.Option(min=0, help="Use no heads beyond this layer (counted from 0).")
    ] = None,
) -> None:
    """Measure our speed against the paper's procedure on plain transformers, both in one run.

    --model random and --model random-8b are models of random weights with real shapes.
    """
    from mmrh_retriever.benchmark.pairs import Benchmark, run_benchmark
    from mmrh_retriever.benchmark.random_models import SHAPES, random_reranker

    if model.model in SHAPES:
        attention = model.attn_implementation or "sdpa"
        reranker = random_reranker(model.model, device=model.device, dtype=model.dtype, attention=attention)
    else:
        reranker = load_reranker(model)
    if max_layer is not None:
        reranker = reranker.with_heads(reranker.heads.up_to_layer(max_layer))
    with stderr.status("Measuring ..."):
        measured = run_benchmark(reranker, pages=pages, questions=questions, rounds=rounds)

    def table(measured: Benchmark = measured) -> Table:
        title = (
            f"{measured.pages} pages, {measured.tokens} tokens, {measured.device}; {measured.heads} heads, layers 0 to "
            f"{measured.deepest} of {measured.layers}; {measured.tokens_per_second:,.0f} tokens per second"
        )
        rows = [
            [ratio.name, _times(ratio.median), f"{_times(ratio.low)} to {_times(ratio.high)}", f"{ratio.seconds:.3f}"]
            for ratio in measured.ratios
        ]
        peak = [f"Peak memory {measured.peak_bytes / 1024**3:.1f} GiB"] if measured.peak_bytes else []
        return Table.of(title, ["", "times", "spread", "seconds"], rows, notes=peak)

    output.show([measured.as_dict()], table)


def _times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.1f}" if ratio >= 10 else f"{ratio:.3f}"
