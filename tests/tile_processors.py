"""Stand-ins, in Pillow, for image processors that transformers has for torchvision alone.

Where torchvision is there, ``tests/model/test_processors.py`` compares with transformers' own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from transformers.image_utils import SizeDict
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorKwargs,
    GotOcr2ImageProcessorPil,
)

from mmrh_retriever.model.image_tiles import holding_tiles


class Cohere2VisionImageProcessorKwargs(GotOcr2ImageProcessorKwargs, total=False):
    """``patch_size`` is the square root of a tile's tokens."""

    patch_size: int


class Cohere2VisionImageProcessorPil(GotOcr2ImageProcessorPil):
    """Tiles and a thumbnail."""

    valid_kwargs = Cohere2VisionImageProcessorKwargs
    crop_to_patches = True
    patch_size = 16

    def crop_image_to_patches(
        self, image: np.ndarray, *limits: int, patch_size: SizeDict, resample: Any, **more: Any
    ) -> list[np.ndarray]:
        rows, columns = holding_tiles(Image.fromarray(np.moveaxis(image, 0, 2)), self)
        side = patch_size.height
        whole = self.resize(image, SizeDict(height=rows * side, width=columns * side), resample=resample)
        cut = [part for band in np.split(whole, rows, axis=1) for part in np.split(band, columns, axis=2)]
        return cut if len(cut) == 1 else [*cut, self.resize(image, patch_size, resample=resample)]
