"""The paper's claims on a small vision-language model: sparsity, overlaps between tasks, lengths and image shares.

    python benchmarks/bundled_heads.py --out heads           # the bundled model
    python benchmarks/bundled_heads.py --model FOLDER --out heads

Probes are generated. Every condition's scores are kept in ``--out`` and a run that was cut off goes on. The causal test
and the ranking of documents have commands of their own: ``mmrh causal`` and ``mmrh evaluate``.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
import torch

from mmrh_retriever import HeadScores, HeadSet
from mmrh_retriever.cli_probes import LoadedModel, load
from mmrh_retriever.detection import Detection, detect
from mmrh_retriever.haystacks import Haystack
from mmrh_retriever.head_analysis import sparsity
from mmrh_retriever.probes import TASKS, ProbeBuilder


def detected(
    loaded: LoadedModel, name: str, share: float, tasks: list[str], lengths: list[int], args: argparse.Namespace
) -> Detection:
    builder = ProbeBuilder(loaded.count, Haystack.generated(args.seed), image_share=share, seed=args.seed)
    probes = [
        probe
        for task in tasks
        for length in lengths
        for probe in builder.build(task, length, examples=args.examples, depths=args.depths)
    ]
    started = time.perf_counter()
    settings = {"share": share, "seed": args.seed, "examples": args.examples, "depths": args.depths}
    journal = args.out / f"{name}.probes.jsonl"
    run = detect(
        loaded.model,
        loaded.processors,
        probes,
        model_id=loaded.name,
        journal=journal,
        resume=True,
        settings=settings,
        progress=True,
        total=len(probes),
    )
    run.table.save(args.out / f"{name}.json")
    print(f"\n{name}: {len(probes)} probes in {time.perf_counter() - started:.0f} s")
    return run


def alike(one: HeadScores, other: HeadScores, share: float) -> str:
    """Overlap of the best heads, and the correlation of all heads' scores."""
    overlap = HeadSet.top(one, share).overlap(HeadSet.top(other, share))
    return f"{100 * overlap:.0f} % / {np.corrcoef(one.values.ravel(), other.values.ravel())[0, 1]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.1, 0.2, 0.4])
    parser.add_argument("--examples", type=int, default=10)
    parser.add_argument("--depths", type=int, default=3)
    parser.add_argument("--top", type=float, default=0.1, help="share of heads compared; 5 % of few heads is coarse")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    loaded = load(args.model, device="cpu", dtype="float32", max_pixels=None)
    print(f"{loaded.name}: {loaded.backbone.layers} layers x {loaded.backbone.heads} heads, torch {torch.__version__}")

    run = detected(loaded, "tasks", 0.1, list(TASKS), args.lengths, args)
    table = run.table
    print("| task | tokens | heads for half | best score (head) | recall@1 best / mean | stability |")
    print("|---|---|---|---|---|---|")
    for task, length in table:
        scores = table.at(task, length)
        best = HeadSet.top(scores, count=1).heads[0]
        stable = run.stability(task, length, share=args.top).mean
        recall = scores.recall_at_1
        half = f"{100 * sparsity(scores.values):.1f} %" if (scores.values > 0).any() else "-"
        print(
            f"| {task} | {length} | {half} | {scores[best]:.3f} ({best}) | "
            f"{np.nanmax(recall):.2f} / {np.nanmean(recall):.2f} | {stable:.2f} |"
        )
    shortest, longest = min(args.lengths), max(args.lengths)
    print(f"\nbest {100 * args.top:.0f} % of heads in common / correlation of all scores, {longest} tokens")
    for one, other in itertools.combinations(TASKS, 2):
        print(f"| {one} | {other} | {alike(table.at(one, longest), table.at(other, longest), args.top)} |")
    print(f"\n{shortest} against longer contexts")
    for task in TASKS:
        first = table.at(task, shortest)
        cells = [alike(first, table.at(task, length), args.top) for length in args.lengths if length > shortest]
        print(f"| {task} | " + " | ".join(cells) + " |")

    middle = sorted(args.lengths)[len(args.lengths) // 2]
    tasks = ["text", "rendered_text"]
    runs = [detected(loaded, f"share-{share:g}", share, tasks, [middle], args).table for share in args.shares]
    print(f"\nimage share of the haystack at {middle} tokens, against {args.shares[0]:g}")
    for task in tasks:
        first = runs[0].at(task, middle)
        print(f"| {task} | " + " | ".join(alike(first, other.at(task, middle), args.top) for other in runs[1:]) + " |")


if __name__ == "__main__":
    main()
