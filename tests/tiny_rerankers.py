"""Tiny random models that sentence-transformers loads: a cross-encoder, and an embedder of texts and images."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
)

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
