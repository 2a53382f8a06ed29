r"""Is the answer here at all? Probabilities measured on data in MMDocIR's form, and a picture of them.

    python benchmarks/calibration.py --annotations mmdocir/annotations.jsonl --documents mmdocir/documents \
        --lists calibration.jsonl --plot docs/calibration.png

Each question is asked of its document, and of the document without its evidence pages. What the lists scored is kept in
``--lists``, a line per document, so that a killed run goes on where it was. Compared are the model's own calibration
(``--calibration``, or the one beside the model) and one learned from these labels, each document left out in turn. The
table goes to stdout in Markdown; the picture shows who is told apart, and whether probabilities are true shares.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmrh_retriever import PageStore, Reranker
from mmrh_retriever.evaluation.calibrating import AskedList, ask
from mmrh_retriever.evaluation.calibration_quality import left_out, quality
from mmrh_retriever.mmdocir import MMDocIR
from mmrh_retriever.ranking.calibration import Calibration, Values
from mmrh_retriever.runs.bootstrap import Interval, bootstrap_interval
from mmrh_retriever.runs.figures import COLOURS, figure
from mmrh_retriever.runs.tables import Table

BINS = 5
Probabilities = list[Values]


def lists_of(reranker: Reranker, data: MMDocIR, kept: Path) -> list[AskedList]:
    """What every question's two lists scored, from the file of those that were asked before, or asked now."""
    done = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    with kept.open("a") as file:
        for document in data.documents:
            if document.name not in {line["document"] for line in done}:
                asked = ask(reranker, replace(data, documents=(document,)), drawn=False)
                done.append({"document": document.name, "lists": [as_json(one) for one in asked]})
                file.write(json.dumps(done[-1]) + "\n")
                file.flush()
    return [from_json(line["document"], one) for line in done for one in line["lists"]]


def as_json(one: AskedList) -> dict[str, Any]:
    """A list as plain data; the pages without text have ``null``."""
    said = None if one.text is None else [None if np.isnan(value) else value for value in one.text.tolist()]
    return {"attention": one.attention.tolist(), "text": said, "gold": one.gold.tolist(), "best": one.best}


def from_json(document: str, line: dict[str, Any]) -> AskedList:
    """The list again."""
    text = None if line["text"] is None else np.array(line["text"], dtype=float)
    return AskedList(document, np.array(line["attention"]), text, np.array(line["gold"], dtype=bool), line["best"])


def row(name: str, asked: Sequence[AskedList], given: Probabilities) -> list[str]:
    """A line of the table."""
    found = quality(asked, given)
    return [
        name,
        shown(found.auc, 1, 2),
        shown(found.false_answers, 100, 1),
        shown(found.first_auc, 1, 2),
        f"{100 * found.expected:.1f}",
        shown(found.found, 100, 1),
        f"{found.brier:.3f}",
    ]


def shown(value: Interval, scale: float, digits: int) -> str:
    """A figure with its interval."""
    mean, low, high = (f"{scale * part:.{digits}f}" for part in (value.mean, value.low, value.high))
    return f"{mean} ({low}–{high})"


def draw(path: Path, asked: Sequence[AskedList], curves: dict[str, Probabilities]) -> None:
    """ROC curves of lists, and the share of evidence among first pages by their probability, in fifths."""
    answered = np.array([one.has_answer for one in asked])
    with figure(path, 9.0, 4.2) as drawn:
        roc, shares = drawn.subplots(1, 2)
        for colour, (name, given) in zip(COLOURS, curves.items(), strict=False):
            said = np.array([values.max() for values in given])
            order = np.argsort(-said, kind="stable")
            passed = np.concatenate([[0], np.cumsum(~answered[order]) / (~answered).sum()])
            kept = np.concatenate([[0], np.cumsum(answered[order]) / answered.sum()])
            roc.step(100 * passed, 100 * kept, where="post", color=colour, label=name)
            middle, means = reliability(asked, given)
            height = 100 * np.array([(item.mean, item.mean - item.low, item.high - item.mean) for item in means]).T
            shares.errorbar(
                100 * np.array(middle), height[0], yerr=np.maximum(height[1:], 0), color=colour, marker="o", capsize=2
            )
        roc.axhline(90, color="0.6", lw=0.8, ls=":")
        for axes in (roc, shares):
            axes.plot([0, 100], [0, 100], color="0.6", lw=0.8, ls="--")
            axes.spines[["top", "right"]].set_visible(False)
        roc.set(xlabel="lists without the answer that pass, %", ylabel="lists with it that pass, %")
        shares.set(xlabel="probability of the page ranked first, %", ylabel="share of them that are evidence, %")
        drawn.legend(loc="outside upper center", ncols=2, frameon=False)


def reliability(asked: Sequence[AskedList], given: Probabilities) -> tuple[list[float], list[Interval]]:
    """Fifths of the pages ranked first by their probability: its mean, and the share that is evidence."""
    first = np.array([values[one.best] for one, values in zip(asked, given, strict=True)])
    right = np.array([one.gold[one.best] for one in asked], dtype=float)
    parts = np.array_split(np.argsort(first, kind="stable"), BINS)
    documents = [one.document for one in asked]
    shares = [bootstrap_interval(right[part], clusters=[documents[index] for index in part]) for part in parts]
    return [float(first[part].mean()) for part in parts], shares


def compared(asked: Sequence[AskedList], calibration: Calibration | None) -> dict[str, Probabilities]:
    """Probabilities by what gives them."""
    found = {"learned from these labels, document left out": left_out(asked)}
    if calibration is None:
        return found
    own = [calibration.probabilities(one.attention, one.text) for one in asked]
    return {"the calibration given": own, **found}


def main() -> None:
    """Ask, measure, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--documents", type=Path, required=True)
    parser.add_argument("--lists", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--calibration", default="auto")
    parser.add_argument("--store", type=Path, help="folder of encoded pages")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    store = None if given.store is None else PageStore(folder=given.store)
    reranker = Reranker.from_pretrained(given.model, calibration=given.calibration, store=store, vision_memory=0)
    asked = lists_of(reranker, MMDocIR.from_pdfs(given.annotations, given.documents), given.lists)
    curves = compared(asked, reranker.calibration)
    images = [one.by_images() for one in asked]
    rows = [row(f"text layer and images, {name}", asked, found) for name, found in curves.items()]
    rows += [
        row(f"images alone, {name}", images, found) for name, found in compared(images, reranker.calibration).items()
    ]
    questions = sum(one.has_answer for one in asked)
    title = f"{questions} questions about {len({one.document for one in asked})} documents"
    columns = [
        "",
        "AUC",
        "false answers, %",
        "AUC of the first",
        "probability of the first, %",
        "evidence among the first, %",
        "Brier",
    ]
    print(Table.of(title, columns, rows).markdown())
    if given.plot is not None:
        draw(given.plot, asked, curves)


if __name__ == "__main__":
    main()
