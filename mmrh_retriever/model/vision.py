"""The vision tower's features of page images: computed for several pages at once, and kept by content.

A page that is seen again, in another window or call, is known by a digest of what the tower would be given. So the
tower, the most expensive part of a small model, runs once per page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from cachetools import LRUCache
from torch import Tensor
from transformers.modeling_outputs import ModelOutput

from mmrh_retriever.errors import SettingsError
from mmrh_retriever.locks import Lock
from mmrh_retriever.model.cpu_patch_products import as_products, patch_convolutions
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.fingerprints import tensors_digest
from mmrh_retriever.model.own_types import own_types
from mmrh_retriever.model.prompts import PromptSegment

DEFAULT_VISION_MEMORY = 256 * 1024**2
"""Bytes of vision features that a reranker keeps."""
PIXEL_BUDGET = 2 * 1024**2
"""Pixels that go through the vision tower at once; a page with more goes alone."""
CPU_PIXEL_BUDGET = 512 * 1024
"""The same on a CPU, where larger intermediates are given back to the system and have to be taken anew."""


@dataclass(frozen=True, slots=True)
class Features:
    """The vision tower's output for one image.

    ``pooled`` takes the place of the image's tokens. ``deep`` are further layers' features, for models that add them
    later (Qwen3-VL). Shapes are the family's own.
    """

    pooled: Tensor
    deep: tuple[Tensor, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors take."""
        return self.pooled.nbytes + sum(layer.nbytes for layer in self.deep)


class Vision:
    """One model's vision tower, with up to ``memory`` bytes of features kept; those used longest ago go first.

    Call :meth:`hold_for` before use, or :meth:`clear` after a change to the model's weights.
    """

    def __init__(self, backbone: Backbone, memory: int = DEFAULT_VISION_MEMORY) -> None:
        if memory < 0:
            raise SettingsError(f"vision_memory is in bytes and not negative, got {memory}.")
        self.backbone = backbone
        self.memory = memory
        self.pixel_budget = CPU_PIXEL_BUDGET if backbone.device.type == "cpu" else PIXEL_BUDGET
        """Pixels that go through the tower at once."""
        self.computed = 0
        """Images that went through the tower so far."""
        self.weights = ""
        """The fingerprint of the weights that features are held for, see :meth:`hold_for`."""
        self._kept: LRUCache[bytes, Features] = LRUCache(memory, getsizeof=lambda features: features.nbytes)
        self._lock = Lock()
        self._convolutions = patch_convolutions(backbone.model)

    @property
    def nbytes(self) -> int:
        """Bytes of features held now."""
        return int(self._kept.currsize)

    def clear(self) -> None:
        """Forget all features."""
        with self._lock:
            self._kept.clear()

    def hold_for(self, weights: str) -> None:
        """Forget all features if they were made by other weights than those of this fingerprint."""
        if weights != self.weights:
            self.clear()
            self.weights = weights

    def model_inputs(self, segments: Sequence[PromptSegment], known: Sequence[Features | None] = ()) -> dict[str, Any]:
        """What a forward pass over segments is given beside their tokens: the features of the images that they hold.

        ``known`` are features of some of the segments; the others' are found here.
        """
        held = [*known, *[None] * (len(segments) - len(known))]
        asked = [segment for segment, own in zip(segments, held, strict=True) if segment.inputs and own is None]
        found = iter(self.of(asked))
        features = [
            next(found) if own is None else own
            for segment, own in zip(segments, held, strict=True)
            if segment.inputs or own is not None
        ]
        return {"mm_encoder_outputs": {"image": self._as_output(features)}} if features else {}

    def of(self, segments: Sequence[PromptSegment]) -> list[Features]:
        """The features of segments that hold an image each; those not kept are computed, several at once."""
        keys = [tensors_digest(segment.inputs) for segment in segments]
        with self._lock:
            found = {key: self._kept[key] for key in keys if key in self._kept}
        missing = {key: segment for key, segment in zip(keys, segments, strict=True) if key not in found}
        for batch in _batches(list(missing.items()), self.backbone.family.images_along, self.pixel_budget):
            for (key, _), features in zip(batch, self._computed([segment for _, segment in batch]), strict=True):
                found[key] = features
                if features.nbytes <= self.memory:
                    with self._lock:
                        self._kept[key] = features
        return [found[key] for key in keys]

    def _computed(self, segments: Sequence[PromptSegment]) -> list[Features]:
        """Run the tower; a batch that does not fit in memory is cut in two."""
        image_token = self.backbone.config.image_token_id
        counts = [segment.ids.count(image_token) for segment in segments]
        if sum(counts) == 1:  # Mistral 3 loses an axis of a single token
            return self._computed([*segments, *segments])[:1]
        try:
            output = self._run(segments)
        except torch.OutOfMemoryError:
            if len(segments) == 1:
                raise
            half = len(segments) // 2
            return [*self._computed(segments[:half]), *self._computed(segments[half:])]
        self.computed += len(segments)
        pooled = _split(output.pooler_output, counts)
        deep = [_split(layer, counts) for layer in getattr(output, "deepstack_features", None) or ()]
        dtype = self.backbone.dtype
        return [
            Features(own.to(dtype), tuple(layer[image].to(dtype) for layer in deep)) for image, own in enumerate(pooled)
        ]

    def _run(self, segments: Sequence[PromptSegment]) -> Any:
        base: Any = self.backbone.base
        inputs = joined_inputs(self.backbone, segments)
        self.backbone.check_evaluating()
        with self.backbone.seam.lock, torch.inference_mode(), own_types(), as_products(self._convolutions):
            return base.get_image_features(**inputs, return_dict=True)

    def _as_output(self, features: Sequence[Features]) -> _Output:
        """As the family's own tower would give them for these images."""
        pooled = tuple(own.pooled for own in features)
        if not self.backbone.family.listed:
            return _Output(torch.cat(pooled), [])
        return _Output(pooled, list(zip(*(own.deep for own in features), strict=True)))


@dataclass
class _Output(ModelOutput):
    """What the models read of a vision output, and ``generate()`` hands on."""

    pooler_output: Any = None
    deepstack_features: Any = None


def joined_inputs(backbone: Backbone, segments: Sequence[PromptSegment]) -> dict[str, Tensor]:
    """The images' inputs of several segments as one batch, as the family's own processor would give them.

    Images of fewer tiles, or smaller ones, are padded with zeros. On the model's device and in its vision tower's type.
    """
    along, dtype = backbone.family.images_along, backbone.vision_dtype
    found = {}
    for name in dict.fromkeys(name for segment in segments for name in segment.inputs):
        values = [segment.inputs[name] for segment in segments if name in segment.inputs]
        joined = _joined(values, along if values[0].dim() > along else 0)
        found[name] = joined.to(backbone.device, dtype if joined.is_floating_point() else None)
    return found


def _joined(values: Sequence[Tensor], along: int) -> Tensor:
    if len(values) == 1:
        return values[0]
    largest = [max(value.shape[axis] for value in values) for axis in range(values[0].dim())]
    padded = []
    for value in values:
        missing = [0 if axis == along else largest[axis] - value.shape[axis] for axis in range(value.dim())]
        sides = [side for axis in reversed(range(value.dim())) for side in (0, missing[axis])]
        padded.append(torch.nn.functional.pad(value, sides) if any(missing) else value)
    return torch.cat(padded, dim=along)


def pixels_of(segment: PromptSegment) -> int:
    """Pixels that the vision tower is given for a segment."""
    return segment.inputs["pixel_values"].numel() // 3 if segment.inputs else 0


def _batches(
    items: Sequence[tuple[bytes, PromptSegment]], along: int, budget: int
) -> Iterator[list[tuple[bytes, PromptSegment]]]:
    """Segments that can go through the tower together: of shapes that join, and within the pixel budget."""
    batch: list[tuple[bytes, PromptSegment]] = []
    pixels = 0
    for item in items:
        size = pixels_of(item[1])
        if batch and (pixels + size > budget or not _joinable(batch[0][1], item[1], along)):
            yield batch
            batch, pixels = [], 0
        batch.append(item)
        pixels += size
    if batch:
        yield batch


def _joinable(one: PromptSegment, other: PromptSegment, along: int) -> bool:
    def rests(segment: PromptSegment) -> dict[str, tuple[int, ...]]:
        return {name: (*v.shape[:along], *v.shape[along + 1 :]) for name, v in segment.inputs.items()}

    return rests(one) == rests(other)


def _split(features: Any, counts: Sequence[int]) -> list[Tensor]:
    """Each image's part, copied, so that it does not keep the others' memory.

    ``features`` is one tensor per image, or ``(tiles, tokens, width)`` of all; ``counts`` are the images' tokens.
    """
    if not isinstance(features, Tensor):
        joined = torch.cat(list(features))
        return [part.clone() for part in joined.split(list(counts))]
    each = features.shape[1] if features.dim() == 3 else 1
    return [part.clone() for part in features.split([count // each for count in counts])]
