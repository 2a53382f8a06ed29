"""What a model's vision tower makes of page images: computed for several pages at once, and kept by content.

A page that is seen again, in another window or call, is known by a digest of what the tower would be given, so that
the tower, the dearest part of a small model, runs once a page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmrh_retriever.errors import PageError
from mmrh_retriever.model.byte_cache import ByteCache
from mmrh_retriever.model.cpu_patch_products import as_products, patch_convolutions
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.fingerprints import tensors_digest
from mmrh_retriever.model.prompts import LaidPiece

DEFAULT_VISION_MEMORY = 256 * 1024**2
"""Bytes of vision features that a reranker keeps."""
PIXEL_BUDGET = 2 * 1024**2
"""Pixels that go through the vision tower at once; a page with more goes alone."""
CPU_PIXEL_BUDGET = 512 * 1024
"""The same on a CPU, whose memory manager gives larger intermediates back to the system and has to take them anew."""


@dataclass(frozen=True, slots=True)
class Features:
    """The vision tower's output for one image.

    ``pooled`` goes where the image's tokens stand; ``deep`` are further layers' features, for models that add them
    later (Qwen3-VL). Shapes are the family's own.
    """

    pooled: Tensor
    deep: tuple[Tensor, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors take."""
        return self.pooled.nbytes + sum(layer.nbytes for layer in self.deep)


class Vision:
    """One model's vision tower with a memory. The model's weights must stay as they are, or :meth:`clear` be called.

    Args:
        backbone: the model.
        memory: bytes of features to keep; those used longest ago go first. 0 keeps none.

    Raises:
        PageError: a negative memory.
    """

    def __init__(self, backbone: Backbone, memory: int = DEFAULT_VISION_MEMORY) -> None:
        if memory < 0:
            raise PageError(f"vision_memory is in bytes and not negative, got {memory}.")
        self.backbone = backbone
        self.memory = memory
        self.pixel_budget = CPU_PIXEL_BUDGET if backbone.device.type == "cpu" else PIXEL_BUDGET
        """Pixels that go through the tower at once."""
        self.computed = 0
        """Images that went through the tower so far."""
        self._kept: ByteCache[bytes, Features] = ByteCache(memory)
        self._convolutions = patch_convolutions(backbone.model)

    @property
    def nbytes(self) -> int:
        """Bytes of features held now."""
        return self._kept.nbytes

    def clear(self) -> None:
        """Forget all features."""
        self._kept.clear()

    def model_inputs(self, pieces: Sequence[LaidPiece], known: Sequence[Features | None] = ()) -> dict[str, Any]:
        """What a forward pass over pieces is given beside their tokens: the features of the images that they hold.

        Args:
            pieces: with an image each, or none.
            known: features of some of the pieces; the others' are found here.
        """
        held = [*known, *[None] * (len(pieces) - len(known))]
        asked = [piece for piece, own in zip(pieces, held, strict=True) if piece.inputs and own is None]
        found = iter(self.of(asked))
        features = [
            next(found) if own is None else own
            for piece, own in zip(pieces, held, strict=True)
            if piece.inputs or own is not None
        ]
        return {"mm_encoder_outputs": {"image": self._as_output(features)}} if features else {}

    def of(self, pieces: Sequence[LaidPiece]) -> list[Features]:
        """The features of pieces that hold an image each; those not kept are computed, several at once."""
        keys = [tensors_digest(piece.inputs) for piece in pieces]
        found = {key: features for key in keys if (features := self._kept.get(key)) is not None}
        missing = {key: piece for key, piece in zip(keys, pieces, strict=True) if key not in found}
        for batch in _batches(list(missing.items()), self.backbone.family.images_along, self.pixel_budget):
            for (key, _), features in zip(batch, self._computed([piece for _, piece in batch]), strict=True):
                found[key] = features
                self._kept.put(key, features)
        return [found[key] for key in keys]

    def _computed(self, pieces: Sequence[LaidPiece]) -> list[Features]:
        """Run the tower; a batch that does not fit in memory is cut in two."""
        try:
            output = self._run(pieces)
        except torch.OutOfMemoryError:
            if len(pieces) == 1:
                raise
            half = len(pieces) // 2
            return [*self._computed(pieces[:half]), *self._computed(pieces[half:])]
        self.computed += len(pieces)
        image_token = self.backbone.config.image_token_id
        counts = [piece.ids.count(image_token) for piece in pieces]
        pooled = _split(output.pooler_output, counts)
        deep = [_split(layer, counts) for layer in getattr(output, "deepstack_features", None) or ()]
        return [Features(own, tuple(layer[place] for layer in deep)) for place, own in enumerate(pooled)]

    def _run(self, pieces: Sequence[LaidPiece]) -> Any:
        backbone = self.backbone
        base: Any = backbone.base
        inputs = {
            key: torch.cat([piece.inputs[key] for piece in pieces], dim=backbone.family.images_along)
            for key in pieces[0].inputs
        }
        dtype = backbone.model.dtype
        moved = {
            key: value.to(backbone.device, dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
        }
        with backbone.seam.lock, torch.inference_mode(), as_products(self._convolutions):
            return base.get_image_features(**moved, return_dict=True)

    def _as_output(self, features: Sequence[Features]) -> _Output:
        """As the family's own tower would give them for these images."""
        pooled = tuple(own.pooled for own in features)
        if not self.backbone.family.listed:
            return _Output(torch.cat(pooled), [])
        return _Output(pooled, list(zip(*(own.deep for own in features), strict=True)))


@dataclass(slots=True)
class _Output:
    """What the models read of a vision output."""

    pooler_output: Any
    deepstack_features: list[tuple[Tensor, ...]]


def pixels_of(piece: LaidPiece) -> int:
    """Pixels that the vision tower is given for a piece."""
    return piece.inputs["pixel_values"].numel() // 3 if piece.inputs else 0


def _batches(
    items: Sequence[tuple[bytes, LaidPiece]], along: int, budget: int
) -> Iterator[list[tuple[bytes, LaidPiece]]]:
    """Pieces that can go through the tower together: of shapes that join, within the pixel budget."""
    batch: list[tuple[bytes, LaidPiece]] = []
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


def _joinable(one: LaidPiece, other: LaidPiece, along: int) -> bool:
    if one.inputs.keys() != other.inputs.keys():
        return False

    def rest(value: Tensor) -> tuple[int, ...]:
        return (*value.shape[:along], *value.shape[along + 1 :])

    return all(rest(one.inputs[key]) == rest(other.inputs[key]) for key in one.inputs)


def _split(features: Any, counts: Sequence[int]) -> list[Tensor]:
    """Each image's part, of its own (tokens that do not hang on the others' memory).

    Args:
        features: one tensor an image, or ``(tiles, tokens, width)`` of all images.
        counts: image tokens of each image.
    """
    if not isinstance(features, Tensor):
        joined = torch.cat(list(features))
        return [part.clone() for part in joined.split(list(counts))]
    each = features.shape[1] if features.dim() == 3 else 1
    return [part.clone() for part in features.split([count // each for count in counts])]
