"""Tiny models of the families that came after the golden files were recorded, and their image processors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.tile_processors import Cohere2VisionImageProcessorPil, Lfm2VlImageProcessorPil
from tests.tiny_text import mrope, qwen_ids, text_config, token_id, tokenizer

_EXPERTS = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1,
}  # fmt: skip


def _text(**more: Any) -> dict[str, Any]:
    return text_config(vocab_size=len(tokenizer(newer=True)), **more)


def _qwen3_vl_moe() -> tuple[Any, Any]:
    config = transformers.Qwen3VLMoeConfig(
        text_config=_text(rope_parameters=mrope([2, 1, 1], mrope_interleaved=True), **_EXPERTS),
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 16,
            "out_hidden_size": 32, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
        },
        **qwen_ids(),
    )  # fmt: skip
    processor = Qwen2VLImageProcessorPil(patch_size=16, min_pixels=32 * 32, max_pixels=32 * 32 * 20)
    return transformers.Qwen3VLMoeForConditionalGeneration, (config, processor)


_GLM_IDS = {
    "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>", "image_start_token_id": "<|vision_start|>",
    "image_end_token_id": "<|vision_end|>", "video_start_token_id": "<video>", "video_end_token_id": "<image>",
}  # fmt: skip
_GLM_VISION = {
    "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 7, "image_size": 56,
    "out_hidden_size": 32,
}  # fmt: skip
_GLM_IMAGES: dict[str, Any] = {
    "patch_size": 7,
    "size": {"shortest_edge": 2 * 14 * 14, "longest_edge": 2 * 14 * 14 * 20},
}


def _glm(config: Any, text: dict[str, Any]) -> Any:
    ids = {key: token_id(token) for key, token in _GLM_IDS.items()}
    return config(text_config=text, vision_config=_GLM_VISION, **ids)


def _glm4v() -> tuple[Any, Any]:
    config = _glm(transformers.Glm4vConfig, _text(rope_parameters=mrope([1, 1, 2])))
    return transformers.Glm4vForConditionalGeneration, (config, Glm4vImageProcessorPil(**_GLM_IMAGES))


def _glm46v() -> tuple[Any, Any]:
    config = _glm(transformers.Glm46VConfig, {"model_type": "glm4v_text", **_text(rope_parameters=mrope([1, 1, 2]))})
    return transformers.Glm46VForConditionalGeneration, (config, Glm46VImageProcessorPil(**_GLM_IMAGES))


def _glm4v_moe() -> tuple[Any, Any]:
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
    config = _glm(transformers.Glm4vMoeConfig, _text(rope_parameters=mrope([1, 1, 2]), **experts) | {"head_dim": 16})
    return transformers.Glm4vMoeForConditionalGeneration, (config, Glm4vImageProcessorPil(**_GLM_IMAGES))


_SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 32, "patch_size": 4, "vision_use_head": False,
}  # fmt: skip
_COHERE_LAYERS = {
    "model_type": "cohere2",
    "num_hidden_layers": 4,
    "sliding_window": 24,
    "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
}


def _aya_vision() -> tuple[Any, Any]:
    config = transformers.AyaVisionConfig(
        text_config=_text(**_COHERE_LAYERS), vision_config=_SIGLIP, image_token_index=token_id("<|IMG_PATCH|>")
    )
    processor = GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, max_patches=6, crop_to_patches=True)
    return transformers.AyaVisionForConditionalGeneration, (config, processor)


def _cohere2_vision() -> tuple[Any, Any]:
    config = transformers.Cohere2VisionConfig(
        text_config=_text(**_COHERE_LAYERS),
        vision_config=_SIGLIP,
        alignment_intermediate_size=32,
        image_token_id=token_id("<|IMG_PATCH|>"),
    )
    processor = Cohere2VisionImageProcessorPil(size={"height": 32, "width": 32}, max_patches=6, patch_size=4)
    return transformers.Cohere2VisionForConditionalGeneration, (config, processor)


def _llava_next() -> tuple[Any, Any]:
    pinpoints = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
    config = transformers.LlavaNextConfig(
        text_config={"model_type": "mistral", **_text(sliding_window=None)},
        vision_config={
            "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
            "num_attention_heads": 2, "image_size": 28, "patch_size": 7, "projection_dim": 16,
        },
        image_token_index=token_id("<image>"),
        image_grid_pinpoints=pinpoints,
    )  # fmt: skip
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=pinpoints
    )
    return transformers.LlavaNextForConditionalGeneration, (config, processor)


def _mistral4() -> tuple[Any, Any]:
    text = {
        "model_type": "mistral4", "first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16, "q_lora_rank": 16, "kv_lora_rank": 12, "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8, "v_head_dim": 6,
    }  # fmt: skip
    config = transformers.Mistral3Config(
        text_config=_text(num_key_value_heads=4) | text,
        vision_config={
            "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "head_dim": 8, "image_size": 112, "patch_size": 7,
        },
        image_token_index=token_id("[IMG]"),
        spatial_merge_size=2,
    )  # fmt: skip
    return transformers.Mistral3ForConditionalGeneration, (config, PixtralImageProcessorPil(size={"longest_edge": 84}))


_GEMMA_LAYERS = {
    "num_hidden_layers": 6, "sliding_window": 24, "global_head_dim": 12, "hidden_size_per_layer_input": 4,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
}  # fmt: skip


def _gemma4(**text: Any) -> tuple[Any, Any]:
    config = transformers.Gemma4Config(
        text_config=_text(vocab_size_per_layer_input=len(tokenizer(newer=True)), **_GEMMA_LAYERS, **text),
        vision_config={
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "head_dim": 8, "patch_size": 4, "pooling_kernel_size": 2,
            "position_embedding_size": 64,
        },
        audio_config=None,
        image_token_id=token_id("<image_soft_token>"),
        video_token_id=token_id("<|video_pad|>"),
        audio_token_id=token_id("<video>"),
        boi_token_id=token_id("<start_of_image>"),
        eoi_token_id=token_id("<end_of_image>"),
    )  # fmt: skip
    processor = Gemma4ImageProcessorPil(patch_size=4, pooling_kernel_size=2, max_soft_tokens=70)
    return transformers.Gemma4ForConditionalGeneration, (config, processor)


def _gemma4_shared() -> tuple[Any, Any]:
    """As the smallest of them: the last layers use the keys of others, and images are causal."""
    return _gemma4(num_kv_shared_layers=3)


def _gemma4_vision() -> tuple[Any, Any]:
    """As the larger ones: images are bidirectional, keys are values, experts."""
    experts = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24}
    return _gemma4(use_bidirectional_attention="vision", attention_k_eq_v=True, num_global_key_value_heads=1, **experts)


_LINEAR_LAYERS = {
    "num_hidden_layers": 6, "layer_types": (["linear_attention"] * 2 + ["full_attention"]) * 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "head_dim": 16,
}  # fmt: skip
_QWEN3_5_VISION = {
    "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 16, "out_hidden_size": 32,
    "num_position_embeddings": 64,
}  # fmt: skip


def _qwen3_5_text(**more: Any) -> dict[str, Any]:
    rope = mrope([1, 1, 0], mrope_interleaved=True, partial_rotary_factor=0.25)
    return _text(rope_parameters=rope, **more) | _LINEAR_LAYERS


def _qwen3_5() -> tuple[Any, Any]:
    config = transformers.Qwen3_5Config(text_config=_qwen3_5_text(), vision_config=_QWEN3_5_VISION, **qwen_ids())
    processor = Qwen2VLImageProcessorPil(patch_size=16, min_pixels=32 * 32, max_pixels=32 * 32 * 20)
    return transformers.Qwen3_5ForConditionalGeneration, (config, processor)


def _qwen3_5_moe() -> tuple[Any, Any]:
    text = _qwen3_5_text(
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16
    )
    config = transformers.Qwen3_5MoeConfig(text_config=text, vision_config=_QWEN3_5_VISION, **qwen_ids())
    processor = Qwen2VLImageProcessorPil(patch_size=16, min_pixels=32 * 32, max_pixels=32 * 32 * 20)
    return transformers.Qwen3_5MoeForConditionalGeneration, (config, processor)


def _lfm2_vl() -> tuple[Any, Any]:
    layers = ["conv", "full_attention", "conv", "full_attention", "conv"]
    config = transformers.Lfm2VlConfig(
        text_config=_text(num_hidden_layers=5, model_type="lfm2", layer_types=layers, block_auto_adjust_ff_dim=False),
        vision_config={
            "model_type": "siglip2_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "patch_size": 4, "num_patches": 64, "vision_use_head": False,
        },
        projector_hidden_size=24,
        image_token_id=token_id("<image>"),
    )  # fmt: skip
    processor = Lfm2VlImageProcessorPil(
        encoder_patch_size=4, tile_size=32, min_image_tokens=4, max_image_tokens=100, max_tiles=6
    )
    return transformers.Lfm2VlForConditionalGeneration, (config, processor)


NEWER: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen3_vl_moe": _qwen3_vl_moe,
    "glm4v": _glm4v,
    "glm4v_moe": _glm4v_moe,
    "glm46v": _glm46v,
    "aya_vision": _aya_vision,
    "cohere2_vision": _cohere2_vision,
    "llava_next": _llava_next,
    "lfm2_vl": _lfm2_vl,
    "qwen3_5": _qwen3_5,
    "qwen3_5_moe": _qwen3_5_moe,
    "gemma4": _gemma4_vision,
    "gemma4_shared": _gemma4_shared,
    "mistral4": _mistral4,
}
