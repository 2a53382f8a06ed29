"""A LangChain RAG chain over PDFs: MMRHRetriever finds the pages, a chat model answers from them.

    pip install -e ".[examples]" -e integrations/langchain-mmrh
    python examples/langchain_rag.py [FILE ...] [--question QUESTION] [--bm25]

The pages run once through the small model that ships with mmrh-retriever; each question then costs its own tokens.
With --bm25, the model sees only the pages that BM25 finds by their text layer. The chat model is a fake with one
answer, so that everything runs offline; use your own instead.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_core.documents import Document
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_mmrh import MMRHRetriever

HERE = Path(__file__).parent
PROMPT = ChatPromptTemplate.from_template(
    "Answer from these pages alone, and say which page you used.\n\n{context}\n\nQuestion: {question}"
)


def shown(documents: Sequence[Document]) -> str:
    """The pages as the chat model reads them."""
    return "\n\n".join(
        f"[{Path(it.metadata['source']).name}, page {it.metadata['page'] + 1}]\n{it.page_content}" for it in documents
    )


def build_chain(retriever: MMRHRetriever) -> Runnable[str, dict[str, Any]]:
    """Question in; ``{"found": documents, "answer": text}`` out."""
    chat = GenericFakeChatModel(messages=iter(lambda: AIMessage("(your chat model's answer)"), None))
    answer = (
        {"context": lambda state: shown(state["found"]), "question": lambda state: state["question"]}
        | PROMPT
        | chat
        | StrOutputParser()
    )
    return {"found": retriever, "question": RunnablePassthrough()} | RunnablePassthrough.assign(answer=answer)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Ask PDFs with LangChain and MMRHRetriever.")
    parser.add_argument("files", type=Path, nargs="*", default=[HERE / "sample_report.pdf"])
    parser.add_argument("--question", help="the sample report's questions by default")
    parser.add_argument("--bm25", action="store_true", help="shorten the list of pages by their text layer")
    parser.add_argument("--model", help="hub id or folder; the model that ships with mmrh-retriever by default")
    parser.add_argument("--heads", default="published")
    chosen = parser.parse_args(arguments)
    asked = [{"question": chosen.question}]
    if chosen.question is None:
        asked = json.loads((HERE / "sample_questions.json").read_text(encoding="utf-8"))[:3]
    retriever = MMRHRetriever(
        files=chosen.files,
        k=3,
        first_stage="bm25" if chosen.bm25 else "all",
        candidates=8,
        model=chosen.model,
        heads=chosen.heads,
    )
    chain = build_chain(retriever)
    for it in asked:
        result = chain.invoke(it["question"])
        print(it["question"])
        for rank, found in enumerate(result["found"], start=1):
            page = f"{Path(found.metadata['source']).name}, page {found.metadata['page'] + 1}"
            print(f"  {rank}. {page}: {found.metadata['relevance_score']:+.4f}")
        print(f"  {result['answer']}")


if __name__ == "__main__":
    main()
