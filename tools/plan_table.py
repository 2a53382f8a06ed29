"""The table of docs/models.md: what ranking takes, by ``mmrh plan``'s own code.

    python tools/plan_table.py [--check]

Qwen3-VL-8B's shape ships with the package, so that no configuration is fetched. Its tokens of text are counted with the
bundled model's tokenizer; they are some hundred of many thousand.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, Qwen2VLImageProcessorPil, Qwen3VLConfig

from mmrh_retriever import Reranker, RerankSettings
from mmrh_retriever.benchmark.plan import Plan, empty_reranker, plan
from mmrh_retriever.benchmark.random_models import SHAPES
from mmrh_retriever.files import write_atomically
from mmrh_retriever.heads.published import published_head_set
from mmrh_retriever.model.loading import load_processors, model_path

DOCUMENT = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- plan: begin -->\n", "<!-- plan: end -->\n"
PAGES, MIB = 20, 1024**2
SIZES = {"2 MP": (1243, 1608), "0.8 MP": (786, 1017)}
NAME = "Qwen/Qwen3-VL-8B-Instruct"
VOCABULARY, PIXELS = 151_936, {"shortest_edge": 65_536, "longest_edge": 16_777_216}
"""Of its published configuration, where the random model's is another."""


def qwen3_vl_8b() -> Reranker:
    """Qwen3-VL-8B without content, with its published heads."""
    config = Qwen3VLConfig(**SHAPES["random-8b"])
    config.text_config.vocab_size = VOCABULARY
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    tokenizer = load_processors(model_path(None)[0], text_only=True).tokenizer
    processor = Qwen2VLImageProcessorPil(patch_size=16, merge_size=2, size=PIXELS)
    return Reranker(model.eval(), (tokenizer, processor), published_head_set(NAME), check=False)


def row(name: str, size: str, planned: Plan) -> str:
    """One line of the table."""
    cells = [
        name, size, f"{planned.weight_bytes / MIB:,.0f} MiB", f"{planned.page_tokens:,}", str(planned.windows),
        f"{planned.kept_bytes / MIB:,.0f} MiB", f"{planned.encode_flops / 1e12:,.1f}",
        f"{planned.question_flops / 1e12:,.3f}", f"{planned.plain_flops / 1e12:,.0f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |\n"


def table() -> str:
    """The table in Markdown."""
    lines = [
        "| model | a page | weights | tokens a page | windows | keys and values | TFLOP, pages | a further question | "
        "the paper's two passes a question |\n| --- | --- |" + " ---: |" * 7 + "\n"
    ]
    models = {"bundled": empty_reranker(None, settings=RerankSettings())[0], "Qwen3-VL-8B": qwen3_vl_8b()}
    for name, reranker in models.items():
        for size, pixels in SIZES.items():
            lines.append(row(name, size, plan(reranker, pages=PAGES, page_size=pixels, page_memory=0)))
    return "".join(lines)


def main() -> int:
    """Write the table, or compare it."""
    parser = argparse.ArgumentParser(description="Write the table of docs/models.md.")
    parser.add_argument("--check", action="store_true", help="exit with 1 if it is not the present one")
    check = parser.parse_args().check
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    written = f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"
    if check:
        return int(written != text)
    write_atomically(DOCUMENT, written.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
