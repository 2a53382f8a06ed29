"""LlamaIndex: the pages that MMRHRerank puts first go as images to a chat model that sees.

    pip install -e ".[examples]" -e integrations/llama-index-postprocessor-mmrh-rerank
    python examples/llama_index_page_images.py --server http://localhost:8000/v1 --chat-model NAME

The server is any that speaks OpenAI's protocol and takes images: vLLM, llama.cpp, Ollama, LM Studio, a hosted one. Its
key, if it wants one, is read from OPENAI_API_KEY.
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Sequence
from pathlib import Path

from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.llms.openai_like import OpenAILike
from llama_index.postprocessor.mmrh_rerank import MMRHRerank
from PIL import Image

from mmrh_retriever import iter_pdf

HERE = Path(__file__).parent


def page_nodes(file: Path) -> list[NodeWithScore]:
    """One node per page of a PDF; a retriever of yours gives fewer."""
    return [
        NodeWithScore(node=TextNode(text=page.text or "", metadata={"file_path": str(file), "page": page.number}))
        for page in iter_pdf(file)
    ]


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Ask a chat model about the page images that MMRHRerank finds.")
    parser.add_argument("file", type=Path, nargs="?", default=HERE / "sample_report.pdf")
    parser.add_argument("--question", default="Who inspected the lifeboats of the Storm Petrel?")
    parser.add_argument("--server", required=True, help="address of the API, such as http://localhost:8000/v1")
    parser.add_argument("--chat-model", required=True, help="the chat model's name on that server")
    parser.add_argument("--top-n", type=int, default=2, help="how many page images the chat model sees")
    parser.add_argument("--model", help="hub id or folder; the model that ships with mmrh-retriever by default")
    parser.add_argument("--heads", default="published")
    chosen = parser.parse_args(arguments)

    rerank = MMRHRerank(top_n=chosen.top_n, model=chosen.model, heads=chosen.heads)
    best = rerank.postprocess_nodes(page_nodes(chosen.file), query_str=chosen.question)
    source = rerank.page_source()
    images = [png(source.page(rerank.clues(found)).pixels()) for found in best]
    for found in best:
        print(f"page {found.metadata['page']}: {found.score:+.4f}")

    chat = OpenAILike(
        model=chosen.chat_model,
        api_base=chosen.server,
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
        is_chat_model=True,
    )
    asked = TextBlock(text=f"Answer from these pages alone.\n\n{chosen.question}")
    shown = [ImageBlock(image=image, image_mimetype="image/png") for image in images]
    print(chat.chat([ChatMessage(role="user", blocks=[*shown, asked])]).message.content)


if __name__ == "__main__":
    main()
