"""Stand-ins, in Pillow, for image processors that transformers has for torchvision alone.

Where torchvision is there, ``tests/model/test_processors.py`` compares with transformers' own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, PILImageResampling, SizeDict
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorKwargs,
    GotOcr2ImageProcessorPil,
)
from transformers.processing_utils import ImagesKwargs

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


class Lfm2VlImageProcessorKwargs(ImagesKwargs, total=False):
    """What decides whether a page is cut, and how."""

    downsample_factor: int
    min_tiles: int
    max_tiles: int
    min_image_tokens: int
    max_image_tokens: int
    encoder_patch_size: int
    tile_size: int
    max_pixels_tolerance: float
    use_thumbnail: bool
    return_row_col_info: bool


class Lfm2VlImageProcessorPil(PilBackend):
    """A small page whole, a large one in tiles with a thumbnail; each as patches, padded to as many."""

    valid_kwargs = Lfm2VlImageProcessorKwargs
    model_input_names = ["pixel_values", "pixel_attention_mask", "spatial_shapes"]  # noqa: RUF012
    downsample_factor, encoder_patch_size, tile_size = 2, 16, 512
    min_tiles, max_tiles, use_thumbnail = 2, 10, True
    min_image_tokens, max_image_tokens, max_pixels_tolerance = 64, 256, 2.0
    do_resize = do_rescale = do_normalize = True
    size = {"height": 512, "width": 512}  # noqa: RUF012
    resample = PILImageResampling.BILINEAR
    rescale_factor = 1 / 255
    image_mean, image_std = IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD
    return_row_col_info = False

    def _preprocess(self, images: list[np.ndarray], **more: Any) -> BatchFeature:
        (image,) = images
        cell, patch = self.encoder_patch_size * self.downsample_factor, self.encoder_patch_size
        rows, columns = self._tiles(image, cell)
        high, wide = self._whole(image, cell)
        cut = []
        if rows * columns > 1:
            size = SizeDict(height=rows * self.tile_size, width=columns * self.tile_size)
            large = self.resize(image, size, resample=self.resample)
            cut = [part for band in np.split(large, rows, axis=1) for part in np.split(band, columns, axis=2)]
        cut.append(self.resize(image, SizeDict(height=high, width=wide), resample=self.resample))
        most = max(self.max_image_tokens * self.downsample_factor**2, (self.tile_size // patch) ** 2)
        pixels = np.zeros((len(cut), most, 3 * patch**2), dtype=np.float32)
        mask = np.zeros((len(cut), most), dtype=np.int64)
        shapes = [(part.shape[1] // patch, part.shape[2] // patch) for part in cut]
        for number, (part, (down, across)) in enumerate(zip(cut, shapes, strict=True)):
            scaled = self.normalize(self.rescale(part, self.rescale_factor), self.image_mean, self.image_std)
            patches = scaled.reshape(3, down, patch, across, patch).transpose(1, 3, 2, 4, 0).reshape(down * across, -1)
            pixels[number, : len(patches)], mask[number, : len(patches)] = patches, 1
        data = {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shapes}
        data |= {"image_rows": [rows], "image_cols": [columns], "image_sizes": [[high, wide]]}
        return BatchFeature(data, tensor_type=more["return_tensors"])

    def _tiles(self, image: np.ndarray, cell: int) -> tuple[int, int]:
        """Rows and columns: those nearest to the page's shape, of equally near ones the last that is not too large."""
        high, wide = image.shape[1:]
        area = max(self.encoder_patch_size, round(high / cell) * cell) * max(
            self.encoder_patch_size, round(wide / cell) * cell
        )
        if area <= self.max_image_tokens * cell**2 * self.max_pixels_tolerance:
            return 1, 1
        shapes = [
            (rows, columns)
            for columns in range(1, self.max_tiles + 1)
            for rows in range(1, self.max_tiles + 1)
            if self.min_tiles <= rows * columns <= self.max_tiles
        ]
        best = (1, 1)
        nearest = math.inf
        for rows, columns in sorted(shapes, key=math.prod):
            away = abs(wide / high - columns / rows)
            fits = wide * high > 0.5 * self.tile_size**2 * rows * columns
            if away < nearest or (away == nearest and fits):
                nearest, best = away, (rows, columns)
        return best

    def _whole(self, image: np.ndarray, cell: int) -> tuple[int, int]:
        """Height and width of the whole page in pixels, within the limits of its tokens."""
        high, wide = image.shape[1:]
        found = max(cell, round(high / cell) * cell), max(cell, round(wide / cell) * cell)
        least, most = self.min_image_tokens * cell**2, self.max_image_tokens * cell**2
        if math.prod(found) > most:
            scale = math.sqrt(most / (high * wide))
            return max(cell, int(high * scale / cell) * cell), max(cell, int(wide * scale / cell) * cell)
        if math.prod(found) < least:
            scale = math.sqrt(least / (high * wide))
            return math.ceil(high * scale / cell) * cell, math.ceil(wide * scale / cell) * cell
        return found
