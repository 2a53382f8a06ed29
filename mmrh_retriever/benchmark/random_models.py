"""Models of real shapes with random weights, to measure speed where no weights are at hand."""

from __future__ import annotations

import json
from importlib.resources import files
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


_FILE = files("mmrh_retriever").joinpath("data", "random_models.json")
SHAPES: dict[str, dict[str, Any]] = json.loads(_FILE.read_text(encoding="utf-8"))
"""Configurations of Qwen3-VL models. A page of 510 x 660 pixels takes about 320 tokens in each.

``random`` runs on a laptop; ``random-2b`` has the shape of Qwen3-VL-2B (4 GB in bfloat16), ``random-8b`` that of
Qwen3-VL-8B (16 GB) but for its vocabulary.
"""


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
    """A reranker on a random model of one of the ``SHAPES``, with a tenth of each layer's heads, down to the last.

    Of the settings ``device``, ``dtype`` and ``attn_implementation`` say how the model is made, the others how it
    ranks. The type is bfloat16 on an accelerator and float32 on a CPU by default. ``seed`` is that of the weights.
    """
    given = RerankSettings.of(settings, changes)
    target = default_device() if given.device is None else torch.device(given.device)
    dtype = getattr(torch, given.dtype or ("float32" if target.type == "cpu" else "bfloat16"), None)
    if not isinstance(dtype, torch.dtype):
        raise SettingsError(f"dtype is the name of one of torch's types, such as 'bfloat16'; got {given.dtype!r}.")
    torch.manual_seed(seed)
    config = Qwen3VLConfig(**SHAPES[name])
    with target:
        model = AutoModelForImageTextToText.from_config(
            config, dtype=dtype, attn_implementation=given.attn_implementation or "sdpa"
        )
    tokenizer = load_processors(model_path(None)[0], text_only=True).tokenizer
    processor = Qwen2VLImageProcessorPil(patch_size=16, merge_size=2)
    heads, layers = config.text_config.num_attention_heads, config.text_config.num_hidden_layers
    chosen = tuple(
        HeadId(layer, (layer * 3 + number * 5) % heads)
        for layer in range(layers)
        for number in range(max(1, round(SHARE * heads)))
    )
    return Reranker(model.to(target).eval(), (tokenizer, processor), HeadSet(chosen), settings=given, check=False)
