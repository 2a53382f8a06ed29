"""Evaluate a reranker with MTEB on a small data set of one's own, offline.

    pip install -e ".[rerankers]" mteb
    python examples/mteb_reranking.py [--images] [--model MODEL]

The task is made here: the sample report's pages are the documents, by their text or as images, and its questions the
queries. MTEB hands a model pairs. Reranker.predict compares a question's documents with one another, so all pairs of a
question have to come in one call, as PairModel below sees to. Any task of MTEB with candidates to rerank runs so.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import numpy.typing as npt
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta

from mmrh_retriever import PageStore, Reranker, read_pdf

HERE = Path(__file__).parent


class PairModel:
    """A reranker as MTEB's cross-encoders are: called with loaders of questions and of documents, pair by pair."""

    def __init__(self, reranker: Reranker, name: str) -> None:
        self.reranker = reranker
        self.mteb_model_meta = ModelMeta.create_empty({"name": name, "modalities": ["text", "image"]})

    def predict(self, inputs1: Any, inputs2: Any, **_: Any) -> npt.NDArray[np.float32]:
        """Scores of pairs in their order; those of a question stand together."""
        pairs = zip(items(inputs1), items(inputs2), strict=True)
        scores = [self.reranker.predict(list(own)) for _, own in groupby(pairs, key=itemgetter(0))]
        return np.concatenate(scores)


def items(batches: Iterable[dict[str, Any]]) -> Iterator[Any]:
    """The texts or images of MTEB's batches, one by one."""
    for batch in batches:
        yield from batch["image"] if "image" in batch else batch["text"]


class SampleReport(AbsTaskRetrieval):
    """The sample report's questions, over its pages' texts."""

    metadata = TaskMetadata(
        name="SampleReportReranking",
        description="Which page of a yearly report answers a question?",
        type="Reranking",
        category="t2t",
        modalities=["text"],
        dataset={"path": "made-here", "revision": "1"},
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="hit_rate_at_1",
    )

    def load_data(self, *_: Any, **__: Any) -> None:
        """Pages without text are no documents here, and questions about them are left out."""
        pages = {str(page.number): page.text for page in read_pdf(HERE / "sample_report.pdf") if page.text}
        self.hold(Dataset.from_dict({"id": list(pages), "text": list(pages.values())}))

    def hold(self, corpus: Dataset) -> None:
        """Take these pages, and the questions that they answer; every page is a candidate for each."""
        asked = json.loads((HERE / "sample_questions.json").read_text(encoding="utf-8"))
        known = {f"q{number}": it for number, it in enumerate(asked) if str(it["page"]) in corpus["id"]}
        self.dataset = {
            "default": {
                "test": {
                    "corpus": corpus,
                    "queries": Dataset.from_dict(
                        {"id": list(known), "text": [it["question"] for it in known.values()]}
                    ),
                    "relevant_docs": {key: {str(it["page"]): 1} for key, it in known.items()},
                    "top_ranked": {key: list(corpus["id"]) for key in known},
                }
            }
        }
        self.data_loaded = True


class SampleReportImages(SampleReport):
    """The same over the pages' images, the scanned one included."""

    metadata = SampleReport.metadata.model_copy(
        update={
            "name": "SampleReportImageReranking",
            "type": "DocumentUnderstanding",
            "category": "t2i",
            "modalities": ["text", "image"],
        }
    )

    def load_data(self, *_: Any, **__: Any) -> None:
        """All pages, drawn."""
        pages = read_pdf(HERE / "sample_report.pdf")
        self.hold(Dataset.from_dict({"id": [str(it.number) for it in pages], "image": [it.pixels() for it in pages]}))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Evaluate a reranker with MTEB on the sample report.")
    parser.add_argument("--images", action="store_true", help="rank page images instead of texts")
    parser.add_argument("--model", help="hub id or folder; the model that ships with mmrh-retriever by default")
    parser.add_argument("--heads", default="published")
    chosen = parser.parse_args(arguments)
    store = PageStore(1024**3)  # a document is encoded once for all questions, if the model reads each alone
    reranker = Reranker.from_pretrained(chosen.model, heads=chosen.heads, store=store)
    model = PairModel(reranker, f"mmrh/{Path(chosen.model or 'bundled').name}")
    task = SampleReportImages() if chosen.images else SampleReport()
    (result,) = mteb.evaluate(model, task, cache=None, co2_tracker=False, show_progress_bar=False).task_results
    scores = result.scores["test"][0]
    print(result.task_name)
    for name in ("hit_rate_at_1", "hit_rate_at_3", "mrr_at_10", "ndcg_at_10"):
        print(f"  {name}: {scores[name]:.4f}")


if __name__ == "__main__":
    main()
