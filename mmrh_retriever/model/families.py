"""The model families that we can drive, one row each, and a loaded model seen through its row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mmrh_retriever.errors import UnsupportedModelError
from mmrh_retriever.heads.published import ModelFacts
from mmrh_retriever.model import image_tiles, image_tokens
from mmrh_retriever.model.attention_seam import AttentionSeam, decoder_attention
from mmrh_retriever.model.image_tokens import ImageTokens

ImageWriter = Callable[..., ImageTokens]
"""Takes an image, its processor, the model's config and a tokenizer."""


@dataclass(frozen=True, slots=True)
class Family:
    """Where a family keeps what we need.

    ``decoder`` is the attribute of the base model that holds the text decoder, ``None`` where the base model is the
    decoder itself: text-only families, which take pages' text alone. ``writer`` writes an image as tokens. With
    ``three_axes`` positions are M-RoPE's (time, row, column). With ``listed`` the vision tower gives one tensor per
    image, not one of all tiles. ``images_along`` is the axis along which several images' inputs join, ``image_mask``
    the input that marks image tokens in a plain pass. With ``locally`` an image's tokens see later ones of their own in
    layers with a sliding window alone. ``frames`` is how often the image processor counts each pixel in its limits,
    since it takes a picture for a film.
    """

    name: str
    model_types: tuple[str, ...]
    decoder: str | None
    writer: ImageWriter | None
    three_axes: bool = False
    listed: bool = False
    images_along: int = 0
    image_mask: str | None = None
    locally: bool = False
    frames: int = 1


_MROPE: dict[str, Any] = {"three_axes": True, "listed": True, "image_mask": "mm_token_type_ids"}

FAMILIES: tuple[Family, ...] = (
    Family("Qwen2-VL", ("qwen2_vl",), "language_model", image_tokens.qwen_vl, **_MROPE),
    Family("Qwen2.5-VL", ("qwen2_5_vl",), "language_model", image_tokens.qwen_vl, **_MROPE),
    Family("Qwen3-VL", ("qwen3_vl", "qwen3_vl_moe"), "language_model", image_tokens.qwen_vl, **_MROPE),
    Family("Qwen3.5", ("qwen3_5", "qwen3_5_moe"), "language_model", image_tokens.qwen_vl, **_MROPE),
    Family("GLM-4V", ("glm4v", "glm4v_moe", "glm46v"), "language_model", image_tokens.glm4v, frames=2, **_MROPE),
    Family("Gemma3", ("gemma3",), "language_model", image_tokens.gemma3, image_mask="token_type_ids"),
    Family(
        "Gemma4",
        ("gemma4",),
        "language_model",
        image_tokens.gemma4,
        listed=True,
        image_mask="mm_token_type_ids",
        locally=True,
    ),
    Family("InternVL", ("internvl",), "language_model", image_tiles.internvl),
    Family("LLaVA-OneVision", ("llava_onevision",), "language_model", image_tiles.llava_onevision, listed=True),
    Family("LLaVA-NeXT", ("llava_next",), "language_model", image_tiles.llava_next, listed=True),
    Family("Aya Vision", ("aya_vision",), "language_model", image_tiles.aya_vision),
    Family("Cohere2 Vision", ("cohere2_vision",), "language_model", image_tiles.cohere2_vision),
    Family("LFM2-VL", ("lfm2_vl",), "language_model", image_tiles.lfm2_vl, listed=True),
    Family("SmolVLM / Idefics3", ("smolvlm", "idefics3"), "text_model", image_tiles.idefics3, images_along=1),
    Family("Mistral3", ("mistral3",), "language_model", image_tokens.mistral3, listed=True),
    Family("Llama (text pages)", ("llama",), None, None),
    Family("Qwen3 (text pages)", ("qwen3",), None, None),
)


def find_family(model_type: str) -> Family:
    """The row for a ``config.model_type``."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(f"{family.name} ({', '.join(family.model_types)})" for family in FAMILIES)
    raise UnsupportedModelError(
        f"Models of type {model_type!r} are not supported. Supported families: {known}. "
        "Load one of these, or add a row to mmrh_retriever/model/families.py."
    )


@dataclass(frozen=True, slots=True)
class Backbone:
    """A loaded model, seen through its family's row."""

    family: Family
    model: PreTrainedModel
    base: nn.Module
    decoder: nn.Module
    seam: AttentionSeam

    @classmethod
    def of(cls, model: PreTrainedModel) -> Backbone:
        """Find the model's row and take hold of its attention (once per model, however often it is asked)."""
        config = getattr(model, "config", None)
        if not isinstance(model, PreTrainedModel) or config is None:
            raise UnsupportedModelError(
                f"Expected a loaded transformers model, got {type(model).__name__}. "
                "Reranker.from_pretrained(...) loads one by name."
            )
        family = find_family(config.model_type)
        base = model.base_model
        decoder = base if family.decoder is None else getattr(base, family.decoder, None)
        if not isinstance(decoder, nn.Module):
            raise UnsupportedModelError(
                f"{type(model).__name__} has no {family.decoder!r} in its base model; the row for {family.name} "
                "expects the classes of transformers 5."
            )
        if not all(getattr(module, "is_causal", True) for module in decoder_attention(decoder).values()):
            raise UnsupportedModelError(
                f"{type(decoder).__name__} attends in both directions, so that its pages depend on the question behind "
                "them and can't be kept. Expected a causal decoder: check use_bidirectional_attention in its config."
            )
        backbone = cls(family, model, base, decoder, AttentionSeam.install(decoder))
        backbone.check_evaluating()
        return backbone

    def check_evaluating(self) -> None:
        """Raise :class:`UnsupportedModelError` if any module is in training mode; called before every pass."""
        for name, module in self.model.named_modules():
            if module.training:
                raise UnsupportedModelError(
                    f"{name or type(self.model).__name__} is in training mode, where dropout makes every pass "
                    "different. Call model.eval() first."
                )

    @property
    def config(self) -> Any:
        """The whole model's config."""
        return self.model.config

    @property
    def text_config(self) -> Any:
        """The text decoder's config."""
        return self.decoder.config

    @property
    def device(self) -> torch.device:
        """Where token ids go; the meta device for a model without any content, as plans are made with."""
        embeddings: Any = self.model.get_input_embeddings()
        device = torch.device(embeddings.weight.device)
        if device.type != "meta":
            return device
        hook = getattr(embeddings, "_hf_hook", None)  # accelerate's, which brings the weights when they are needed
        for own in getattr(hook, "hooks", (hook,)):
            execution: Any = getattr(own, "execution_device", None)
            if execution is not None:
                return torch.device(execution)
        if all(weight.is_meta for weight in self.model.parameters()):
            return device
        raise UnsupportedModelError(
            f"The embeddings of {self.name} are on the meta device, without numbers. Expected weights in memory or "
            "offloaded by accelerate; load the model again."
        )

    @property
    def dtype(self) -> torch.dtype:
        """The type of the text decoder's numbers."""
        decoder: Any = self.decoder
        return decoder.dtype  # type: ignore[no-any-return]

    @property
    def vision_dtype(self) -> torch.dtype:
        """The type of the vision tower's numbers, which its pixels are given in; the decoder's if there is no tower."""
        own = {id(weight) for weight in self.decoder.parameters()}
        others = (weight.dtype for weight in self.base.parameters() if id(weight) not in own)
        return next((dtype for dtype in others if dtype.is_floating_point), self.dtype)

    @property
    def takes_images(self) -> bool:
        """Whether pictures can be shown to the model."""
        return self.family.writer is not None

    @property
    def reads_images_alone(self) -> bool:
        """Whether the model can't read text: its config says so in ``mmrh_images_only``, as the bundled one's does."""
        return self.takes_images and bool(getattr(self.config, "mmrh_images_only", False))

    @property
    def name(self) -> str:
        """The model's id or folder, or its class if it has neither."""
        return str(getattr(self.config, "_name_or_path", "") or type(self.model).__name__)

    @property
    def facts(self) -> ModelFacts:
        """What the choice of heads must know."""
        size = int(self.text_config.hidden_size)
        heads_file = getattr(self.model, "mmrh_heads_file", None)  # from ``load_model``
        kind = self.config.model_type
        return ModelFacts(self.name, kind, self.layers, self.heads, size, self.global_layers, heads_file)

    @property
    def axes(self) -> int:
        """Rotary axes of a position: 3 for M-RoPE families, else 1."""
        return 3 if self.family.three_axes else 1

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return int(self.text_config.num_hidden_layers)

    @property
    def heads(self) -> int:
        """Query heads in each layer."""
        return int(self.text_config.num_attention_heads)

    @property
    def keeps_plain_keys(self) -> bool:
        """Whether each layer keeps keys and values of its own projections, not latents that both are made of."""
        modules = self.seam.modules.values()
        return all(hasattr(module, "k_proj") and hasattr(module, "v_proj") for module in modules)

    @property
    def global_layers(self) -> tuple[int, ...]:
        """Layers that attend to the whole context; only these can hold retrieval heads."""
        return tuple(layer for layer, window in self.seam.windows.items() if window is None)

    @property
    def recurrent_layers(self) -> frozenset[int]:
        """Layers without attention (linear attention, convolutions): each token changes their state for good."""
        return frozenset(range(self.layers)) - self.seam.modules.keys()

    @property
    def context(self) -> int:
        """The longest context, in tokens, that the model was made for.

        It ends where a longrope or dynamic rotation begins to change with the length: kept keys can't follow.
        """
        longest = int(getattr(self.text_config, "max_position_embeddings", 0) or 32_768)
        return min(longest, self._changing_rotation[1] or longest)

    @property
    def context_described(self) -> str:
        """The context's length, and why it ends there if that is not the model's own limit."""
        kind, end = self._changing_rotation
        why = f" (beyond it the {kind} rotation of its keys changes, which kept keys can't follow)" if end else ""
        return f"{self.context}{why}"

    @property
    def _changing_rotation(self) -> tuple[str, int]:
        """The kind of rotation that changes with a pass's length, if any, and the tokens up to which it does not."""
        given = getattr(self.text_config, "rope_parameters", None) or {}
        for rope in (given, *(own for own in given.values() if isinstance(own, dict))):  # one, or one per kind of layer
            kind = str(rope.get("rope_type", ""))
            if kind == "longrope":
                return kind, int(rope["original_max_position_embeddings"])
            if "dynamic" in kind:
                return kind, int(self.text_config.max_position_embeddings)
        return "", 0
