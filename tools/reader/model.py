"""The reader's architecture: stock Qwen2.5-VL classes at small size."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tools.reader.labels import CELL, MERGE, PATCH, WINDOW_CELLS

TOWER_WIDTH = 256
WIDTH = 512  # of the text tower, so of a visual token
BLANK = 0  # the piece that says "nothing here": <|endoftext|>
EMBEDDING_STD = 0.075
FINAL_NORM = 0.8
ROPE_THETA = 1e10  # with less, what a head matches fades with distance
MAX_PIXELS = 2_000_000  # a Letter or A4 page at 145 dpi, as PDF pages are drawn
INK_SCALE = 96.0


def reader_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """Windows of 8 x 8 visual tokens and no full-attention block: a page costs what its windows cost."""
    token = tokenizer.convert_tokens_to_ids
    return Qwen2_5_VLConfig(
        vision_config={
            "depth": 5,
            "hidden_size": TOWER_WIDTH,
            "intermediate_size": 640,
            "num_heads": 4,
            "in_channels": 3,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 1,
            "window_size": WINDOW_CELLS * CELL,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [],
            "initializer_range": 0.02,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 768,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": [24, 20, 20]},
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
            "tie_word_embeddings": True,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def working_zoom(width: float, height: float) -> float:
    """Pixels per point at which a page of this size, in points, has the reader's MAX_PIXELS."""
    return (MAX_PIXELS / (width * height)) ** 0.5


def image_processor() -> Qwen2VLImageProcessorPil:
    """Stock preprocessing that gives white 0 and black 255 / 96."""
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        temporal_patch_size=1,
        merge_size=MERGE,
        size={"shortest_edge": CELL * CELL, "longest_edge": MAX_PIXELS},
        image_mean=[1.0, 1.0, 1.0],
        image_std=[-INK_SCALE / 255] * 3,
    )


@torch.no_grad()
def initialise(model: nn.Module, residual_scale: float) -> None:
    """Normal weights of standard deviation fan_in ** -0.5; smaller where a block writes to the residual stream."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv3d):
            fan_in = module.weight[0].numel()
            writes = name.endswith(("attn.proj", "o_proj", "down_proj"))
            module.weight.normal_(0.0, fan_in**-0.5 * (residual_scale if writes else 1.0))
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0.0, EMBEDDING_STD)


def new_reader(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """An untrained reader with tied sub-word embeddings."""
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(reader_config(tokenizer))
    # The text tower writes little at first: what a token says must stay legible through its layers.
    initialise(model.model.visual, residual_scale=0.5)
    initialise(model.model.language_model, residual_scale=0.1)
    model.tie_weights()
    with torch.no_grad():
        model.model.language_model.norm.weight.fill_(FINAL_NORM)
        model.model.visual.merger.mlp[2].weight.mul_(EMBEDDING_STD)
    return model
