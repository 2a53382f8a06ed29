"""Tiny models of every supported family with random weights, their real image processors, and a tokenizer.

Everything is built in code: no hub, no torchvision. ``tiny(name)`` gives a fresh model and its processors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image, ImageDraw
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests.newer_families import NEWER
from tests.tiny_text import CORPUS as CORPUS
from tests.tiny_text import PLAIN_TEMPLATE, TEMPLATE, mrope, qwen_ids, text_config, token_id, tokenizer
from tests.tiny_text import SPECIAL as SPECIAL


@dataclass(frozen=True)
class Tiny:
    """A tiny model with what it takes to feed it."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    image_processor: Any

    def save(self, folder: Path) -> Path:
        """Write all of it into a folder, as ``from_pretrained`` reads it."""
        for part in (self.model, self.tokenizer, self.image_processor):
            part.save_pretrained(folder)
        return folder


def _qwen2_vl() -> tuple[Any, Any]:
    config = transformers.Qwen2VLConfig(
        text_config=text_config(rope_parameters=mrope([1, 1, 2])),
        vision_config={
            "depth": 2,
            "embed_dim": 16,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 14,
        },
        **qwen_ids(),
    )
    return transformers.Qwen2VLForConditionalGeneration, (
        config,
        Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=28 * 28 * 20),
    )


def _qwen2_5_vl() -> tuple[Any, Any]:
    config = transformers.Qwen2_5_VLConfig(
        text_config=text_config(rope_parameters=mrope([1, 1, 2])),
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 14,
            "out_hidden_size": 32, "window_size": 56, "fullatt_block_indexes": [1],
        },
        **qwen_ids(),
    )  # fmt: skip
    return transformers.Qwen2_5_VLForConditionalGeneration, (
        config,
        Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=28 * 28 * 20),
    )


def _qwen3_vl() -> tuple[Any, Any]:
    config = transformers.Qwen3VLConfig(
        text_config=text_config(rope_parameters=mrope([2, 1, 1], mrope_interleaved=True)),
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 16,
            "out_hidden_size": 32, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
        },
        **qwen_ids(),
    )  # fmt: skip
    processor = Qwen2VLImageProcessorPil(patch_size=16, min_pixels=32 * 32, max_pixels=32 * 32 * 20)
    return transformers.Qwen3VLForConditionalGeneration, (config, processor)


def _gemma3() -> tuple[Any, Any]:
    config = transformers.Gemma3Config(
        text_config=text_config(
            num_hidden_layers=4,
            sliding_window=24,
            layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            query_pre_attn_scalar=8,
        ),
        vision_config={
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 56, "patch_size": 7, "vision_use_head": False,
        },
        mm_tokens_per_image=16,
        boi_token_index=token_id("<start_of_image>"),
        eoi_token_index=token_id("<end_of_image>"),
        image_token_index=token_id("<image_soft_token>"),
    )  # fmt: skip
    return transformers.Gemma3ForConditionalGeneration, (
        config,
        Gemma3ImageProcessorPil(size={"height": 56, "width": 56}),
    )


def _internvl() -> tuple[Any, Any]:
    config = transformers.InternVLConfig(
        text_config={"model_type": "qwen2", **text_config()},
        vision_config={
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": [32, 32], "patch_size": [4, 4],
        },
        image_token_id=token_id("<IMG_CONTEXT>"),
        image_seq_length=16,
    )  # fmt: skip
    processor = GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, max_patches=6, crop_to_patches=True)
    return transformers.InternVLForConditionalGeneration, (config, processor)


def _llava_onevision() -> tuple[Any, Any]:
    pinpoints = [[28, 28], [28, 56], [56, 28], [56, 56], [84, 56]]
    config = transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **text_config()},
        vision_config={
            "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 28, "patch_size": 7, "vision_use_head": False,
        },
        image_token_index=token_id("<image>"),
        video_token_index=token_id("<video>"),
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio="anyres_max_4",
        vision_feature_select_strategy="full",
    )  # fmt: skip
    processor = LlavaOnevisionImageProcessorPil(size={"height": 28, "width": 28}, image_grid_pinpoints=pinpoints)
    return transformers.LlavaOnevisionForConditionalGeneration, (config, processor)


def _smolvlm() -> tuple[Any, Any]:
    config = transformers.SmolVLMConfig(
        text_config={"model_type": "llama", **text_config()},
        vision_config={
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 4,
        },
        image_token_id=token_id("<image>"),
        scale_factor=2,
    )  # fmt: skip
    processor = SmolVLMImageProcessorPil(size={"longest_edge": 96}, max_image_size={"longest_edge": 32})
    return transformers.SmolVLMForConditionalGeneration, (config, processor)


def _idefics3() -> tuple[Any, Any]:
    _, (smol, processor) = _smolvlm()
    config = transformers.Idefics3Config(
        text_config=smol.text_config.to_dict(),
        vision_config=smol.vision_config.to_dict() | {"model_type": "idefics3_vision"},
        image_token_id=token_id("<image>"),
        scale_factor=2,
    )
    return transformers.Idefics3ForConditionalGeneration, (config, processor)


def _mistral3() -> tuple[Any, Any]:
    config = transformers.Mistral3Config(
        text_config={"model_type": "mistral", **text_config(sliding_window=None)},
        vision_config={
            "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "head_dim": 8, "image_size": 112, "patch_size": 7,
        },
        image_token_index=token_id("[IMG]"),
        spatial_merge_size=2,
    )  # fmt: skip
    return transformers.Mistral3ForConditionalGeneration, (config, PixtralImageProcessorPil(size={"longest_edge": 84}))


def _llama() -> tuple[Any, Any]:
    return transformers.LlamaForCausalLM, (transformers.LlamaConfig(**text_config()), None)


def _qwen3() -> tuple[Any, Any]:
    return transformers.Qwen3ForCausalLM, (transformers.Qwen3Config(**text_config()), None)


BUILDERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "gemma3": _gemma3,
    "internvl": _internvl,
    "llava_onevision": _llava_onevision,
    "smolvlm": _smolvlm,
    "idefics3": _idefics3,
    "mistral3": _mistral3,
    "llama": _llama,
    "qwen3": _qwen3,
    **NEWER,
}
TEXT_ONLY = ("llama", "qwen3")
MROPE = tuple(name for name in BUILDERS if name.startswith(("qwen2_", "qwen3_", "glm")))
RECURRENT = ("qwen3_5", "qwen3_5_moe", "lfm2_vl")
"""Families with layers that have a state instead of keys."""
VISION = tuple(name for name in BUILDERS if name not in TEXT_ONLY)


def tiny(name: str, *, attn_implementation: str = "sdpa", seed: int = 0) -> Tiny:
    """A fresh tiny model of a family, in float32, with weights drawn large enough that attention varies."""
    torch.manual_seed(seed)
    cls, (config, image_processor) = BUILDERS[name]()
    model = cls._from_config(config, attn_implementation=attn_implementation).float().eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("A_log"):
                parameter.fill_(-2.0)  # states that last: where they fade at once, rounding is all that is left of them
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2.0 / fan_in**0.5))
    template = PLAIN_TEMPLATE if name in TEXT_ONLY else TEMPLATE
    return Tiny(name, model, tokenizer(template, newer=name in NEWER), image_processor)


def page_image(seed: int, size: tuple[int, int] = (96, 128)) -> Image.Image:
    """A small page-like picture: lines of noise on white, different for each seed."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for top in range(6, size[1] - 8, 9):
        for left in range(6, size[0] - 8, 7):
            if rng.random() < 0.7:
                shade = tuple(int(v) for v in rng.integers(0, 180, 3))
                draw.rectangle((left, top, left + 4, top + 5), fill=shade)
    return image
