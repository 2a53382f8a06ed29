"""What tiny models of all families share: a tokenizer with the families' special tokens, and a text decoder's sizes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>", "<start_of_image>", "<end_of_image>", "<image_soft_token>", "<img>", "</img>",
    "<IMG_CONTEXT>", "<image>", "<video>", "<fake_token_around_image>", "<global-img>", "[IMG]", "[IMG_BREAK]",
    "[IMG_END]", *[f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)],
]  # fmt: skip
NEWER_SPECIAL = [
    "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "<|image_start|>", "<|image_end|>",
    "<|img_thumbnail|>", *[f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)],
]  # fmt: skip
"""Those of the families in ``newer_families.py``, which have ids behind all others."""
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN_TEMPLATE = TEMPLATE.replace(
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}", "{{ message['content'] }}"
)
CORPUS = [
    "Find the pages that hold the evidence for the question.",
    "Page 1: Question: How did revenue change in the last year? Answer: it grew by nine percent.",
    "The annual report shows emissions, staff numbers, water use and the tables of the balance sheet.",
]


@lru_cache(maxsize=4)
def tokenizer(template: str = TEMPLATE, *, newer: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the special tokens of all families, those of the newer ones if asked for."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[*SPECIAL, *NEWER_SPECIAL] if newer else SPECIAL,
        chat_template=template,
    )


def token_id(token: str) -> int:
    return int(tokenizer(newer=True).convert_tokens_to_ids(token))


def text_config(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "pad_token_id": token_id("<|endoftext|>"),
        "bos_token_id": token_id("<|im_start|>"),
        "eos_token_id": token_id("<|im_end|>"),
        **more,
    }


_QWEN_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def qwen_ids() -> dict[str, int]:
    return {key: token_id(token) for key, token in _QWEN_IDS.items()}


def mrope(sections: list[int], **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": sections, **more}
