"""Images resized once before their image processor resizes them: for Qwen-VL, as the authors' release prepares them.

Their release hands images to Qwen's image processor through the package ``qwen-vl-utils``, which resizes each to whole
visual tokens first. The processor then finds nothing to do, unless the image is below its own lower limit: small
layouts are resized twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from PIL import Image

FEWEST_TOKENS = 4
"""Visual tokens that a resized image takes at least."""
MOST_TOKENS = 16_384
"""Visual tokens that it takes at most."""


def with_first_resize(image_processor: Any) -> Any:
    """The same image processor behind a first resize, if it is one that takes images at their own size (Qwen-VL)."""
    sized = hasattr(image_processor, "patch_size") and hasattr(image_processor, "merge_size")
    return FirstResize(image_processor) if sized else image_processor


class FirstResize:
    """An image processor that resizes images to whole visual tokens before it does its own work."""

    def __init__(self, image_processor: Any) -> None:
        self.image_processor = image_processor

    def __getattr__(self, name: str) -> Any:
        if name == "image_processor":  # not there yet: the object is being copied or unpickled
            raise AttributeError(name)
        return getattr(self.image_processor, name)

    def __call__(self, *, images: list[Image.Image], **options: Any) -> Any:
        """As the image processor, on resized images."""
        side = int(self.patch_size) * int(self.merge_size)
        resized = [image.resize(whole_tokens(*image.size, side), Image.Resampling.BICUBIC) for image in images]
        return self.image_processor(images=resized, **options)


def whole_tokens(width: int, height: int, side: int) -> tuple[int, int]:
    """The nearest size of whole visual tokens, ``side`` pixels each, within the limits of tokens, shape kept."""
    wide, high = _snapped(width, side, round), _snapped(height, side, round)
    most, fewest = MOST_TOKENS * side**2, FEWEST_TOKENS * side**2
    if wide * high > most:
        scale = math.sqrt(most / (width * height))
        return _snapped(width * scale, side, math.floor), _snapped(height * scale, side, math.floor)
    if wide * high < fewest:
        scale = math.sqrt(fewest / (width * height))
        return _snapped(width * scale, side, math.ceil), _snapped(height * scale, side, math.ceil)
    return wide, high


def _snapped(length: float, side: int, snap: Callable[[float], int]) -> int:
    return max(side, snap(length / side) * side)
