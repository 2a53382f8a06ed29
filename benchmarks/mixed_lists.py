"""Hybrid scores on lists that mix pages with and without a text layer: is either kind favoured?

    python benchmarks/mixed_lists.py --annotations ANNOTATIONS --documents PDFS [--store FOLDER]

Two kinds of lists. *Hidden*: the text layers of some pages, drawn by lot, are hidden; images and attention stay as they
are. *Joined*: the pages of a scan and those of a document with a text layer stand in one list. Beside the package's way
of joining stands the plain one, a weighted sum of shares over all pages, where pages without text have none of the
text's. A question counts by whether its evidence pages have a text layer; those with both kinds are left out.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmrh_retriever import Page, PageStore, Reranker
from mmrh_retriever.bm25 import TextIndex
from mmrh_retriever.evaluation.metrics import page_recall
from mmrh_retriever.evaluation.rankers import HeadRanker
from mmrh_retriever.mmdocir import MMDocIR
from mmrh_retriever.ranking.hybrid import TextLayer, softmax_of_z
from mmrh_retriever.runs.tables import Table
from mmrh_retriever.settings import DEFAULT_TEXT_WEIGHT

Floats = npt.NDArray[np.float64]
WAYS = ("images alone", "plain sum", "both")


class Asked(NamedTuple):
    """A question over a list: attention, ``(pages,)``, and the indices of its evidence pages."""

    text: str
    attention: Floats
    gold: tuple[int, ...]


class Measured(NamedTuple):
    """Recall at 1 and 3, and whether the first page has text."""

    first: float
    third: float
    text_first: float


def joined(attention: Floats, text: Floats, layer: TextLayer) -> dict[str, Floats]:
    """A question's scores under each way of joining, ``(pages,)`` each."""
    plain = softmax_of_z(attention)
    if text.max() > 0:
        plain = (1 - layer.weight) * plain + layer.weight * softmax_of_z(text)
    return {"images alone": attention, "plain sum": plain, "both": layer.joined(attention, text)}


def measured(asked: Sequence[Asked], texts: Sequence[str]) -> Iterator[tuple[str, str, Measured]]:
    """For each question whose evidence is of one kind: that kind, a way of joining, and what it finds."""
    has_text = np.array([bool(text.strip()) for text in texts])
    layer = TextLayer(TextIndex(texts), has_text, DEFAULT_TEXT_WEIGHT)
    for question, text in zip(asked, layer.index.scores([it.text for it in asked]), strict=True):
        kinds = list({"text" if has_text[index] else "no text" for index in question.gold})
        if len(kinds) > 1:
            continue
        for way, scores in joined(question.attention, text, layer).items():
            recall = [page_recall(scores, question.gold, most) for most in (1, 3)]
            yield kinds[0], way, Measured(*recall, float(has_text[scores.argmax()]))


def rows(name: str, found: dict[tuple[str, str], list[Measured]]) -> Iterator[list[str]]:
    """A row per way: recall by kind of evidence, of all, and how often the first page has text."""
    for way in WAYS:
        cells = []
        everything = found["text", way] + found["no text", way]
        for measures in (found["no text", way], found["text", way], everything):
            means = np.mean(measures, axis=0) * 100
            cells += [f"{means[0]:.1f}", f"{means[1]:.1f}"]
        yield [name, way, str(len(everything)), *cells, f"{np.mean(everything, axis=0)[2] * 100:.1f}"]


def attention_of(
    ranker: HeadRanker, questions: Sequence[tuple[str, tuple[int, ...]]], pages: list[Page]
) -> list[Asked]:
    scores = ranker.rank([text for text, _ in questions], pages)
    return [Asked(text, row, gold) for (text, gold), row in zip(questions, scores, strict=True)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Hybrid scores on lists of pages with and without a text layer.")
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--documents", type=Path, required=True, help="the folder of PDFs")
    parser.add_argument("--store", type=Path, help="keep encoded pages here")
    parser.add_argument("--model", help="hub id or folder; the bundled model if left out")
    parser.add_argument("--draws", type=int, default=20, help="draws of the pages whose text is hidden")
    args = parser.parse_args(arguments)
    store = None if args.store is None else PageStore(folder=args.store)
    reranker = Reranker.from_pretrained(args.model, store=store, hybrid=False)
    ranker, data, lots = (
        HeadRanker(reranker),
        MMDocIR.from_pdfs(args.annotations, args.documents),
        np.random.default_rng(0),
    )

    pages = {document.name: data.pages(document) for document in data.documents}
    questions = {it.name: [(question.text, question.pages) for question in it.questions] for it in data.documents}
    with_text = {name: np.mean([bool((page.text or "").strip()) for page in own]) >= 0.5 for name, own in pages.items()}
    texts = [name for name in pages if with_text[name]]
    scans = [name for name in pages if not with_text[name]]

    lists: dict[str, dict[tuple[str, str], list[Measured]]] = defaultdict(lambda: defaultdict(list))
    for done, name in enumerate(texts):
        asked = attention_of(ranker, questions[name], pages[name])
        for share in (0.25, 0.5, 0.75):
            for _ in range(args.draws):
                hidden = lots.random(len(pages[name])) < share
                left = ["" if hide else page.text or "" for hide, page in zip(hidden, pages[name], strict=True)]
                if any(text.strip() for text in left):
                    for kind, way, measures in measured(asked, left):
                        lists[f"{share:.0%} hidden"][kind, way].append(measures)
        print(f"{done + 1} of {len(texts)} documents with text", file=sys.stderr, flush=True)
    for scan, text in zip(scans, texts, strict=False):
        both = [*pages[scan], *pages[text]]
        moved = [(words, tuple(index + len(pages[scan]) for index in gold)) for words, gold in questions[text]]
        asked = attention_of(ranker, [*questions[scan], *moved], both)
        for kind, way, measures in measured(asked, [page.text or "" for page in both]):
            lists["joined"][kind, way].append(measures)
        print(f"{scan} with {text}: {len(both)} pages", file=sys.stderr, flush=True)

    columns = ["list", "score", "questions", "no text R@1", "R@3", "text R@1", "R@3", "all R@1", "R@3", "text first"]
    made = [row for name, found in lists.items() for row in rows(name, found)]
    print(Table.of("Recall in %, by whether the evidence has a text layer", columns, made, text_columns=2).markdown())


if __name__ == "__main__":
    main()
