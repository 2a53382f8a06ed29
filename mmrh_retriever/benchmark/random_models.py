"""Models of real shapes with random weights, to measure speed where no weights are at hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, Qwen3VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mmrh_retriever.errors import SettingsError
from mmrh_retriever.heads.sets import HeadId, HeadSet
from mmrh_retriever.model.loading import default_device, load_processors, model_path
from mmrh_retriever.ranking.reranker import Reranker
from mmrh_retriever.settings import RerankSettings

SHARE = 0.1
"""The share of each layer's heads that is selected; the published sets of Qwen3-VL-8B have about as many."""


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
    model: str | None,
    *,
    heads: str | Path | HeadSet = "published",
    settings: RerankSettings | None = None,
    **changes: Any,
) -> Reranker:
    """A random model by the name of its shape, with heads of its own, or any other as ``from_pretrained`` loads it."""
    if model in SHAPES:
        return random_reranker(model, settings=settings, **changes)
    return Reranker.from_pretrained(model, heads=heads, settings=settings, **changes)


def random_reranker(name: str, *, seed: int = 0, settings: RerankSettings | None = None, **changes: Any) -> Reranker:
    """A reranker on a random model, with a tenth of each layer's heads, down to the last layer.

    Args:
        name: one of ``SHAPES``.
        seed: of the weights.
        settings: ``device``, ``dtype`` and ``attn_implementation`` say how the model is made, the others how it ranks.
            The type is bfloat16 on an accelerator and float32 on a CPU by default.
        changes: fields of ``settings`` in place of theirs.

    Raises:
        SettingsError: a setting that is out of its range, or an unknown type.
    """
    shape = SHAPES[name]
    given = RerankSettings.of(settings, changes)
    target = default_device() if given.device is None else torch.device(given.device)
    dtype = getattr(torch, given.dtype or ("float32" if target.type == "cpu" else "bfloat16"), None)
    if not isinstance(dtype, torch.dtype):
        raise SettingsError(f"dtype is the name of one of torch's types, such as 'bfloat16'; got {given.dtype!r}.")
    torch.manual_seed(seed)
    with target:
        model = AutoModelForImageTextToText.from_config(
            _config(shape), dtype=dtype, attn_implementation=given.attn_implementation or "sdpa"
        )
    path, _ = model_path(None)
    tokenizer = load_processors(path, text_only=True).tokenizer
    processor = Qwen2VLImageProcessorPil(patch_size=16, merge_size=2)
    each = max(1, round(SHARE * shape.heads))
    heads = [
        HeadId(layer, (layer * 3 + number * 5) % shape.heads) for layer in range(shape.layers) for number in range(each)
    ]
    chosen = HeadSet(tuple(heads))
    return Reranker(model.to(target).eval(), (tokenizer, processor), chosen, settings=given, check=False)


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
