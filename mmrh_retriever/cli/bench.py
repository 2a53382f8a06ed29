"""``mmrh bench``: our speed against plain transformers, both measured in one run."""

from __future__ import annotations

from typing import Annotated

import typer

from mmrh_retriever.cli.options import ModelOptions, OutputOptions, grouped, load_reranker, settings_from, stderr


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

    --model random, random-2b and random-8b are models of random weights with real shapes.
    """
    from mmrh_retriever.benchmark.pairs import run_benchmark
    from mmrh_retriever.benchmark.random_models import SHAPES, random_reranker

    random = model.model in SHAPES
    reranker = random_reranker(str(model.model), settings=settings_from(model)) if random else load_reranker(model)
    if max_layer is not None:
        reranker = reranker.with_heads(reranker.heads.up_to_layer(max_layer))
    with stderr.status("Measuring ..."):
        measured = run_benchmark(reranker, pages=pages, questions=questions, rounds=rounds)
    output.show([measured.as_dict()], lambda: [measured.table()])
