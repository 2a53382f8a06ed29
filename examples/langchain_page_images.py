"""LangChain: the pages that MMRHRetriever finds go as images to a chat model that sees.

    pip install -e ".[examples]" -e integrations/langchain-mmrh
    python examples/langchain_page_images.py --server http://localhost:8000/v1 --chat-model NAME

The server is any that speaks OpenAI's protocol and takes images: vLLM, llama.cpp, Ollama, LM Studio, a hosted one. Its
key, if it wants one, is read from OPENAI_API_KEY.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_mmrh import MMRHRetriever
from langchain_openai import ChatOpenAI

from mmrh_retriever import read_pdf

HERE = Path(__file__).parent


def as_content(document: Document) -> dict[str, Any]:
    """The image of a document's page, as chat models take it."""
    (page,) = read_pdf(document.metadata["source"], pages=[document.metadata["page"]])
    stream = io.BytesIO()
    page.pixels().save(stream, "PNG")
    packed = base64.b64encode(stream.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{packed}"}}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Ask a chat model about the page images that MMRHRetriever finds.")
    parser.add_argument("file", type=Path, nargs="?", default=HERE / "sample_report.pdf")
    parser.add_argument("--question", default="Who inspected the lifeboats of the Storm Petrel?")
    parser.add_argument("--server", required=True, help="address of the API, such as http://localhost:8000/v1")
    parser.add_argument("--chat-model", required=True, help="the chat model's name on that server")
    parser.add_argument("--top-n", type=int, default=2, help="how many page images the chat model sees")
    parser.add_argument("--model", help="hub id or folder; the model that ships with mmrh-retriever by default")
    parser.add_argument("--heads", default="published")
    chosen = parser.parse_args(arguments)

    def asked(found: Sequence[Document]) -> list[HumanMessage]:
        for document in found:
            print(f"page {document.metadata['page'] + 1}: {document.metadata['relevance_score']:+.4f}")
        text = {"type": "text", "text": f"Answer from these pages alone.\n\n{chosen.question}"}
        return [HumanMessage([*map(as_content, found), text])]

    retriever = MMRHRetriever(files=[chosen.file], k=chosen.top_n, model=chosen.model, heads=chosen.heads)
    retriever.warm_up()  # the pages run once; each further question costs its own tokens
    key = os.environ.get("OPENAI_API_KEY", "none")
    chain = retriever | asked | ChatOpenAI(model=chosen.chat_model, base_url=chosen.server, api_key=key)
    print((chain | StrOutputParser()).invoke(chosen.question))


if __name__ == "__main__":
    main()
