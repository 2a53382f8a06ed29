"""Randomly initialised models of real shapes, for measuring speed where no weights are at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, Qwen3VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mmrh_retriever.heads.sets import HeadId, HeadSet
from mmrh_retriever.model.loading import default_device, load_processors, model_path
from mmrh_retriever.ranking.reranker import Reranker

SHARE = 0.1
"""Of each layer's heads, how many are selected; about as many as the published sets of Qwen3-VL-8B have."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a Qwen3-VL model; a page of 510 x 660 pixels takes about 320 tokens in each."""

    width: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    head_width: int
    vision_width: int
    vision_inner: int
    vision_layers: int
    vision_heads: int
    deepstack: tuple[int, ...]


SHAPES = {
    "random": Shape(512, 1536, 8, 8, 4, 64, 256, 768, 4, 4, (1, 2, 3)),
    "random-8b": Shape(4096, 12_288, 36, 32, 8, 128, 1152, 4304, 27, 16, (8, 16, 24)),
}
"""``random`` runs on a laptop; ``random-8b`` has the shape of Qwen3-VL-8B (16 GB in bfloat16)."""


def reranker_to_measure(
    model: str | None, *, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> Reranker:
    """A random model by the name of its shape, or any other as ``Reranker.from_pretrained`` takes it."""
    if model in SHAPES:
        return random_reranker(model, device=device, dtype=dtype)
    return Reranker.from_pretrained(model, device=device, dtype=dtype)


def random_reranker(
    name: str,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    attention: str = "sdpa",
    seed: int = 0,
) -> Reranker:
    """A reranker on a random model, with a tenth of each layer's heads, down to the last layer.

    Args:
        name: one of ``SHAPES``.
        device: where to make it; the first accelerator if there is one, else the CPU.
        dtype: bfloat16 on an accelerator and float32 on a CPU, unless told.
        attention: ``sdpa``, ``eager`` or ``flash_attention_2``.
        seed: of the weights.
    """
    shape = SHAPES[name]
    target = default_device() if device is None else torch.device(device)
    weights = dtype or (torch.float32 if target.type == "cpu" else torch.bfloat16)
    torch.manual_seed(seed)
    with target:
        model = AutoModelForImageTextToText.from_config(_config(shape), dtype=weights, attn_implementation=attention)
    path, _ = model_path(None)
    tokenizer = load_processors(path, text_only=True).tokenizer
    processor = Qwen2VLImageProcessorPil(patch_size=16, merge_size=2)
    each = max(1, round(SHARE * shape.heads))
    heads = [
        HeadId(layer, (layer * 3 + place * 5) % shape.heads) for layer in range(shape.layers) for place in range(each)
    ]
    return Reranker(model.to(target).eval(), (tokenizer, processor), HeadSet(tuple(heads)), check=False)


def _config(shape: Shape) -> Any:
    half = shape.head_width // 2
    side = half * 5 // 16
    return Qwen3VLConfig(
        text_config={
            "vocab_size": 4096,
            "hidden_size": shape.width,
            "intermediate_size": shape.inner,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_heads,
            "head_dim": shape.head_width,
            "max_position_embeddings": 262_144,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5_000_000.0,
                "mrope_section": [half - 2 * side, side, side],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": shape.vision_layers,
            "hidden_size": shape.vision_width,
            "intermediate_size": shape.vision_inner,
            "num_heads": shape.vision_heads,
            "patch_size": 16,
            "out_hidden_size": shape.width,
            "deepstack_visual_indexes": list(shape.deepstack),
        },
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=3,
        vision_end_token_id=4,
    )
