"""The paper's claims on a small vision-language model: sparse, shared by tasks and lengths, and causal?

    python benchmarks/bundled_heads.py --out heads                # the bundled model
    python benchmarks/bundled_heads.py --model FOLDER --out heads --causal 10

Probes are generated and ask with the needle's beginning (cloze), for small models complete and don't answer. Every
probe's scores and answers are kept in ``--out``, and a run that was cut off goes on. Tables go to stdout in Markdown.
Whether the selected heads rank documents better than all heads is measured by ``mmrh evaluate``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmrh_retriever import HeadScores, HeadSet
from mmrh_retriever.cli.options import LoadingOptions
from mmrh_retriever.cli.probes import LoadedModel, load_for_probes
from mmrh_retriever.files import write_json
from mmrh_retriever.research.causal import causal_journal, causal_rows, keep_rows
from mmrh_retriever.research.causal_tables import causal_table, summarise_causal
from mmrh_retriever.research.detection import Detection, detect
from mmrh_retriever.research.head_analysis import chance_overlap, sparsity
from mmrh_retriever.research.probes import TASKS, ProbeBuilder
from mmrh_retriever.research.probes.haystacks import Haystack
from mmrh_retriever.runs.tables import Table

CLOZE = ("text", "rendered_text")
"""Tasks whose questions can be asked with the needle's beginning."""


def detected(
    loaded: LoadedModel, name: str, share: float, tasks: Sequence[str], lengths: list[int], args: argparse.Namespace
) -> Detection:
    builder = ProbeBuilder(loaded.count, Haystack.generated(args.seed), image_share=share, seed=args.seed)
    probes = [
        probe
        for task in tasks
        for length in lengths
        for probe in builder.build(task, length, examples=args.examples, depths=args.depths, cloze=task in CLOZE)
    ]
    started = time.perf_counter()
    settings = {"share": share, "seed": args.seed, "examples": args.examples, "depths": args.depths}
    run = detect(
        loaded.model,
        loaded.processors,
        probes,
        model_id=loaded.name,
        journal=args.out / f"{name}.probes",
        resume=True,
        settings=settings,
        progress=True,
        total=len(probes),
    )
    run.table.save(args.out / f"{name}.json")
    print(f"{name}: {len(probes)} probes in {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    return run


def alike(one: HeadScores, other: HeadScores, share: float) -> str:
    """Overlap of the best heads, and the correlation of all heads' scores."""
    overlap = HeadSet.top(one, share).overlap(HeadSet.top(other, share))
    return f"{100 * overlap:.0f} / {np.corrcoef(one.values.ravel(), other.values.ravel())[0, 1]:.2f}"


def properties(run: Detection, top: float) -> str:
    rows = []
    for task, length in run.table:
        scores = run.table.at(task, length)
        best = HeadSet.top(scores, count=1).heads[0]
        recall = scores.recall_at_1
        half = f"{100 * sparsity(scores.values):.1f}" if (scores.values > 0).any() else "–"
        stable = f"{100 * run.stability(task, length, share=top).mean:.0f}" if (scores.n_examples or 0) > 1 else "–"
        rows.append([
            task, str(length), half, f"{scores[best]:.3f} ({best})", f"{100 * np.nanmax(recall):.0f}",
            f"{100 * np.nanmean(recall):.0f}", stable,
        ])  # fmt: skip
    columns = ["task", "tokens", "heads for half of the mass, %", "best score (head)", "recall@1 of the best head, %"]
    return Table.of("", [*columns, "mean recall@1, %", "stability, %"], rows).markdown()


def causal(loaded: LoadedModel, run: Detection, args: argparse.Namespace) -> str:
    """Accuracy with the best heads of detection masked, on other probes than those of detection."""
    length = min(args.lengths)
    heads = HeadSet.of_tasks(run.table, CLOZE, length, share=args.top)
    builder = ProbeBuilder(loaded.count, Haystack.generated(args.seed + 1), image_share=0.1, seed=args.seed + 1)
    probes = [
        probe
        for task in CLOZE
        for probe in builder.build(task, length, examples=args.causal, depths=args.depths, cloze=True)
    ]
    settings = {"heads": [str(head) for head in heads], "length": length, "examples": args.causal}
    settings |= {"depths": args.depths, "seed": args.seed + 1, "random_seeds": args.random_seeds}
    with causal_journal(args.out / "causal", settings, resume=True) as journal:
        rows = causal_rows(
            loaded.model, loaded.processors, probes, heads, answering="choices", random_seeds=args.random_seeds,
            phases=("all",), finished=journal.done, progress=True, total=len(probes),
        )  # fmt: skip
        summary = summarise_causal(keep_rows(rows, journal))
    write_json(args.out / "causal.json", summary)
    about = f"Masked heads, {len(heads)} of {run.table.n_layers * run.table.n_heads}, while reading and answering; "
    return f"{about}probes of {length} tokens, choices by likelihood. {causal_table(summary).markdown()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.1, 0.2, 0.4])
    parser.add_argument("--examples", type=int, default=10)
    parser.add_argument("--depths", type=int, default=3)
    parser.add_argument("--top", type=float, default=0.1, help="share of heads compared; 5 %% of few heads is coarse")
    parser.add_argument("--causal", type=int, default=10, help="examples per task of the causal test; 0 leaves it out")
    parser.add_argument("--random-seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    loaded = load_for_probes(args.model, LoadingOptions(device="cpu", dtype="float32"))
    layers, width = loaded.backbone.layers, loaded.backbone.heads
    print(f"{loaded.name}: {layers} layers x {width} heads; {args.examples} questions at {args.depths} depths\n")

    run = detected(loaded, "tasks", 0.1, TASKS, args.lengths, args)
    scores = run.table
    print(properties(run, args.top), flush=True)
    shortest, longest = min(args.lengths), max(args.lengths)
    top = f"best {100 * args.top:g} % of heads in common, in % / correlation of all heads' scores"
    chance = f"chance {100 * chance_overlap(scores, args.top):.0f} %"
    print(f"Between tasks at {longest} tokens: {top} ({chance})\n")
    pairs = [
        [task, *("" if other == task else alike(scores.at(task, longest), scores.at(other, longest), args.top)
                 for other in TASKS)]
        for task in TASKS
    ]  # fmt: skip
    print(Table.of("", ["", *TASKS], pairs).markdown(), flush=True)
    longer = [length for length in args.lengths if length > shortest]
    if longer:
        print(f"Between {shortest} tokens and longer contexts: {top}\n")
        lines = [
            [task, *(alike(scores.at(task, shortest), scores.at(task, length), args.top) for length in longer)]
            for task in TASKS
        ]
        print(Table.of("", ["", *(f"{length} tokens" for length in longer)], lines).markdown(), flush=True)

    middle = sorted(args.lengths)[len(args.lengths) // 2]
    if len(args.shares) > 1:
        runs = [detected(loaded, f"share-{share:g}", share, CLOZE, [middle], args).table for share in args.shares]
        print(f"Between image shares of the haystack, {args.shares[0]:g} and others, at {middle} tokens: {top}\n")
        lines = [
            [task, *(alike(runs[0].at(task, middle), other.at(task, middle), args.top) for other in runs[1:])]
            for task in CLOZE
        ]
        print(Table.of("", ["", *(f"{share:g}" for share in args.shares[1:])], lines).markdown(), flush=True)
    if args.causal:
        print(causal(loaded, run, args))


if __name__ == "__main__":
    main()
