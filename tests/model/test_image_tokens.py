"""Our ids and pixels are those of the families' own processors, where these can be had.

Processors of families that know video demand torchvision; without it their tests skip (`make processors` has it).
"""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mmrh_retriever import Page
from mmrh_retriever.errors import UnsupportedModelError
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.loading import load_processors
from mmrh_retriever.model.prompts import Prompter
from tests.factories import page_image, tiny

MARKERS = {
    "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3_vl_moe": "<|vision_start|><|image_pad|><|vision_end|>",
    "glm4v": "<|vision_start|><|image_pad|><|vision_end|>",
    "glm4v_moe": "<|vision_start|><|image_pad|><|vision_end|>",
    "glm46v": "<|vision_start|><|image_pad|><|vision_end|>",
    "aya_vision": "<image>",
    "cohere2_vision": "<|IMG_PATCH|>",
    "llava_next": "<image>",
    "qwen3_5": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3_5_moe": "<|vision_start|><|image_pad|><|vision_end|>",
    "lfm2_vl": "<image>",
    "gemma3": "<start_of_image>",
    "gemma4": "<image_soft_token>",
    "gemma4_shared": "<image_soft_token>",
    "internvl": "<IMG_CONTEXT>",
    "llava_onevision": "<image>",
    "smolvlm": "<image>",
    "idefics3": "<image>",
    "mistral3": "[IMG]",
    "mistral4": "[IMG]",
}


GEMMA_TOKENS = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
GLM = {"glm4v": "Glm4v", "glm4v_moe": "Glm4v", "glm46v": "Glm46V"}
GLM_TOKENS = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
COHERE_TOKENS = {
    "boi_token": "<|START_OF_IMG|>",
    "eoi_token": "<|END_OF_IMG|>",
    "image_token": "<|IMG_PATCH|>",
    "img_line_break_token": "<|IMG_LINE_BREAK|>",
}
INTERN_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def named(tokenizer: Any, tokens: dict[str, str]) -> Any:
    """A copy of the tokenizer with the named tokens that the family's own has."""
    tokenizer = copy.deepcopy(tokenizer)
    for key, token in tokens.items():
        setattr(tokenizer, key, token)
        setattr(tokenizer, f"{key}_id", tokenizer.convert_tokens_to_ids(token))
    return tokenizer


def processor_without_videos(name: str, images: Any, tokenizer: Any) -> Any:
    if name == "aya_vision":
        return transformers.AyaVisionProcessor(images, tokenizer, patch_size=4, img_size=32, downsample_factor=2)
    if name == "llava_next":
        return transformers.LlavaNextProcessor(
            images, tokenizer, patch_size=7, vision_feature_select_strategy="default", num_additional_image_tokens=1
        )
    if name == "lfm2_vl":
        return transformers.Lfm2VlProcessor(images, tokenizer)
    return transformers.Cohere2VisionProcessor(images, named(tokenizer, COHERE_TOKENS))


def processor_with_named_tokens(name: str, images: Any, tokenizer: Any) -> Any:
    if name.startswith("glm"):
        cls, video = getattr(transformers, GLM[name] + "Processor"), getattr(transformers, GLM[name] + "VideoProcessor")
        return cls(images, named(tokenizer, GLM_TOKENS), video())
    own = named(tokenizer, GEMMA_TOKENS | {"boa_token": "<img>", "eoa_token": "</img>"})
    sounds = transformers.Gemma4AudioFeatureExtractor()
    return transformers.Gemma4Processor(sounds, images, own, transformers.Gemma4VideoProcessor())


def own_processor(name: str) -> Any:
    model = tiny(name)
    tokenizer, images = model.tokenizer, model.image_processor
    if name == "gemma3":
        return transformers.Gemma3Processor(images, named(tokenizer, GEMMA_TOKENS), image_seq_length=16)
    if name == "idefics3":
        return transformers.Idefics3Processor(images, tokenizer, image_seq_len=16)
    if name in ("aya_vision", "llava_next", "lfm2_vl", "cohere2_vision"):
        return processor_without_videos(name, images, tokenizer)
    pytest.importorskip("torchvision", reason=f"{name}'s own processor demands torchvision")
    if name in ("mistral3", "mistral4"):
        return transformers.PixtralProcessor(images, tokenizer, patch_size=7, spatial_merge_size=2)
    if name == "internvl":
        video = transformers.InternVLVideoProcessor()
        return transformers.InternVLProcessor(images, named(tokenizer, INTERN_TOKENS), video, image_seq_length=16)
    if name == "llava_onevision":
        return transformers.LlavaOnevisionProcessor(
            images,
            tokenizer,
            transformers.LlavaOnevisionVideoProcessor(),
            num_image_tokens=16,
            vision_feature_select_strategy="full",
            vision_aspect_ratio="anyres_max_4",
        )
    if name == "smolvlm":
        pytest.importorskip("num2words", reason="SmolVLM's own processor demands num2words")
        return transformers.SmolVLMProcessor(images, tokenizer, transformers.SmolVLMVideoProcessor(), image_seq_len=16)
    if name.startswith(("gemma4", "glm")):
        return processor_with_named_tokens(name, images, tokenizer)
    classes = {
        "qwen2_vl": (transformers.Qwen2VLProcessor, "Qwen2VLVideoProcessor"),
        "qwen2_5_vl": (transformers.Qwen2_5_VLProcessor, "Qwen2VLVideoProcessor"),
        "qwen3_vl": (transformers.Qwen3VLProcessor, "Qwen3VLVideoProcessor"),
        "qwen3_vl_moe": (transformers.Qwen3VLProcessor, "Qwen3VLVideoProcessor"),
        "qwen3_5": (transformers.Qwen3VLProcessor, "Qwen3VLVideoProcessor"),
        "qwen3_5_moe": (transformers.Qwen3VLProcessor, "Qwen3VLVideoProcessor"),
    }
    cls, video = classes[name]
    return cls(images, tokenizer, getattr(transformers, video)())


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is there")
def test_an_image_processor_that_demands_torchvision_says_so(tmp_path: Path) -> None:
    tiny("lfm2_vl").tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "lfm2_vl"}')
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "Lfm2VlImageProcessor"}')
    with pytest.raises(UnsupportedModelError, match="torchvision: Lfm2VlImageProcessor.*install the torchvision"):
        load_processors(str(tmp_path), text_only=False)


@pytest.mark.parametrize("size", [(96, 128), (150, 70), (60, 140)])
@pytest.mark.parametrize("name", list(MARKERS))
def test_ids_and_pixels_equal_the_processors(name: str, size: tuple[int, int]) -> None:
    processor = own_processor(name)
    model = tiny(name)
    prompter = Prompter(Backbone.of(model.model), model.tokenizer, model.image_processor)
    image = page_image(1, size)
    segment = prompter.page_segment(Page(image=image), 1)
    theirs = processor(images=[image], text=MARKERS[name], return_tensors="pt", add_special_tokens=False)
    label, newline = len(prompter.text.plain("Page 1: ")), len(prompter.text.plain("\n"))
    assert segment.ids[label : len(segment) - newline] == theirs["input_ids"][0].tolist()
    for key, value in segment.inputs.items():
        torch.testing.assert_close(value, torch.as_tensor(theirs[key]), atol=0, rtol=0)
