"""Tiny random models that sentence-transformers loads: cross-encoders, one of images, and an embedder of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    Gemma3Processor,
    PreTrainedTokenizerFast,
)

from tests.factories import tiny

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "revenue", "grew", "fleet", "water", "the", "fell")


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), WORDS, strict=False))
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=256, **named)


def save_cross_encoder(folder: Path, labels: int = 1) -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=len(WORDS), max_position_embeddings=256, num_labels=labels, initializer_range=0.5, **sizes
    )
    made = BertForSequenceClassification(config).eval()
    made.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return made


def save_image_embedder(folder: Path) -> CLIPModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    config = CLIPConfig(
        text_config=sizes | tokens | {"max_position_embeddings": 256},
        vision_config=sizes | {"image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    made = CLIPModel(config).eval()
    made.save_pretrained(folder)
    sides = {"height": 32, "width": 32}
    CLIPProcessor(CLIPImageProcessorPil(size=sides, crop_size=sides), tokenizer()).save_pretrained(folder)
    return made


YES, NO = 30, 31
"""The tokens whose logits a generative reranker is asked for."""
_PART = "{% if part['type'] == 'image' %}<start_of_image>{% else %}{{ part['text'] }}{% endif %}"
_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}" + _PART + "{% endfor %}{% endif %}; {% endfor %}yes or no?"
)


def save_image_cross_encoder(folder: Path) -> tuple[Any, Gemma3Processor]:
    """A vision-language model that says how much more it expects one token than another."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.cross_encoder.modules.logit_score import LogitScore

    made = tiny("gemma3")
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=made.tokenizer.backend_tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=_TEMPLATE,
        extra_special_tokens={
            "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>",
        },
    )  # fmt: skip
    length = made.model.config.mm_tokens_per_image
    processor = Gemma3Processor(made.image_processor, tokens, image_seq_length=length, chat_template=_TEMPLATE)
    for part in (made.model, processor):
        part.save_pretrained(folder / "plain")
    reader = Transformer(str(folder / "plain"), transformer_task="any-to-any")
    CrossEncoder(modules=[reader, LogitScore(YES, NO)], device="cpu").save_pretrained(str(folder))
    return made.model, processor
