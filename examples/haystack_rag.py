"""A Haystack RAG pipeline over PDFs: BM25 finds pages by their text, MMRHRanker ranks them by looking at them.

    pip install -e ".[dev]" -e integrations/mmrh-haystack
    HAYSTACK_TELEMETRY_ENABLED=False python examples/haystack_rag.py [FILE ...] [--question QUESTION]

Pages are Haystack documents with the file's path and the page's number, as PyPDFToDocument(store_full_path=True) and
DocumentSplitter write them. These two drop scanned pages, so the pages are read here, and those without text are always
among the candidates. They run through the small model that ships with mmrh-retriever. The chat model at the end is a
fake with one answer, so that everything runs offline; use your own instead.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from haystack import Document, Pipeline, component
from haystack.components.builders import PromptBuilder
from haystack.components.joiners import DocumentJoiner
from haystack.components.retrievers import FilterRetriever
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack_integrations.components.rankers.mmrh import MMRHRanker

from mmrh_retriever import iter_pdf

HERE = Path(__file__).parent
SCANS = {"field": "meta.scan", "operator": "==", "value": True}
PROMPT = """Answer from these pages alone, and say which page you used.
{% for page in documents %}
[{{ page.meta.file_path }}, page {{ page.meta.page_number }}]
{{ page.content or "(a scan)" }}
{% endfor %}
Question: {{ question }}"""


@component
class FakeGenerator:
    """Stands in for a generator of Haystack's."""

    @component.output_types(replies=list[str])
    def run(self, prompt: str) -> dict[str, list[str]]:
        """One answer to everything."""
        return {"replies": [f"(your chat model's answer to a prompt of {len(prompt.split())} words)"]}


def page_documents(files: Sequence[Path]) -> list[Document]:
    """One document per page; a scan has no content."""
    return [
        Document(
            content=page.text or None, meta={"file_path": str(path), "page_number": page.number, "scan": not page.text}
        )
        for path in files
        for page in iter_pdf(path)
    ]


def build_pipeline(files: Sequence[Path], *, candidates: int = 8, **settings: Any) -> Pipeline:
    """Question in; ranked documents and replies out. ``settings`` are those of MMRHRanker."""
    store = InMemoryDocumentStore()
    store.write_documents(page_documents(files))
    pipeline = Pipeline()
    pipeline.add_component("words", InMemoryBM25Retriever(store, top_k=candidates))
    pipeline.add_component("scans", FilterRetriever(store, filters=SCANS))
    pipeline.add_component("joined", DocumentJoiner(sort_by_score=False))
    pipeline.add_component("ranker", MMRHRanker(**settings))
    pipeline.add_component("prompt", PromptBuilder(PROMPT, required_variables=["documents", "question"]))
    pipeline.add_component("chat", FakeGenerator())
    pipeline.connect("words.documents", "joined.documents")
    pipeline.connect("scans.documents", "joined.documents")
    pipeline.connect("joined.documents", "ranker.documents")
    pipeline.connect("ranker.documents", "prompt.documents")
    pipeline.connect("prompt.prompt", "chat.prompt")
    return pipeline


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Ask PDFs with Haystack and MMRHRanker.")
    parser.add_argument("files", type=Path, nargs="*", default=[HERE / "sample_report.pdf"])
    parser.add_argument("--question", help="the sample report's questions by default")
    parser.add_argument("--model", help="hub id or folder; the model that ships with mmrh-retriever by default")
    parser.add_argument("--heads", default="published")
    chosen = parser.parse_args(arguments)
    asked = [{"question": chosen.question}]
    if chosen.question is None:
        asked = json.loads((HERE / "sample_questions.json").read_text(encoding="utf-8"))[:3]
    pipeline = build_pipeline(chosen.files, top_k=3, model=chosen.model, heads=chosen.heads)
    for question in (it["question"] for it in asked):
        result = pipeline.run(
            {"words": {"query": question}, "ranker": {"query": question}, "prompt": {"question": question}},
            include_outputs_from={"ranker"},
        )
        print(question)
        for rank, found in enumerate(result["ranker"]["documents"], start=1):
            page = f"{Path(found.meta['file_path']).name}, page {found.meta['page_number']}"
            print(f"  {rank}. {page}: {found.score:+.4f}")
        print(f"  {result['chat']['replies'][0]}")


if __name__ == "__main__":
    main()
