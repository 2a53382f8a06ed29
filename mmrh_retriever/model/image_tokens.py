"""How each family writes an image as tokens: one function per family. Those that cut pages: ``image_tiles.py``.

Each gives a page image to the family's own *image processor* (never to a ``*Processor``, which demands
torchvision). It says which tokens stand for the image, which part of the page each visual token sees, and what
the vision tower is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmrh_retriever.types import PatchGrid, TokenSpan

if TYPE_CHECKING:
    from mmrh_retriever.model.tokenizing import TextTokenizer


@dataclass(frozen=True, slots=True, eq=False)
class ImageTokens:
    """An image as tokens.

    ``visual[i]`` is the offset in ``ids`` of the visual token that sees ``grid.boxes[i]``. ``inner`` spans the
    tokens without the begin and end markers. ``positions`` are rotary positions relative to the image's first
    token: ``(3, tokens)`` for M-RoPE families, ``None`` where they count up. The next token has the position
    ``extent`` further on. ``bidirectional`` spans tokens that see each other in both directions. ``text_before`` and
    ``text_behind`` are plain text that the family puts around an image; it is none of the image's.
    """

    ids: tuple[int, ...]
    visual: tuple[int, ...]
    inner: TokenSpan
    grid: PatchGrid
    inputs: Mapping[str, Tensor]
    extent: int
    positions: Tensor | None = None
    bidirectional: TokenSpan | None = None
    text_before: str = ""
    text_behind: str = ""


def qwen_vl(image: Image.Image, processor: Any, config: Any, tokens: TextTokenizer) -> ImageTokens:
    """Qwen-VL from Qwen2-VL on: one grid at the page's own shape, M-RoPE positions."""
    return _own_shape(image, processor, config, config.vision_start_token_id, config.vision_end_token_id)


def glm4v(image: Image.Image, processor: Any, config: Any, tokens: TextTokenizer) -> ImageTokens:
    """GLM-4V: as Qwen-VL, between markers of its own."""
    return _own_shape(image, processor, config, config.image_start_token_id, config.image_end_token_id)


def _own_shape(image: Image.Image, processor: Any, config: Any, begin: int, end: int) -> ImageTokens:
    """One grid at the page's own shape between two markers.

    Positions follow the models' own rule. An image's tokens share the temporal position of its start, and count
    rows and columns from there. The text behind goes on after the larger of the two.
    """
    batch = processor(images=[image], return_tensors="pt")
    merge = int(config.vision_config.spatial_merge_size)
    _, high, wide = (int(v) for v in batch["image_grid_thw"][0])
    rows, columns = high // merge, wide // merge
    count = rows * columns
    row, column = np.divmod(np.arange(count), columns)
    inside = np.stack([np.zeros(count, dtype=np.int64), row, column]) + 1  # (3, count)
    last = max(rows, columns) + 1
    positions = np.concatenate([np.zeros((3, 1)), inside, np.full((3, 1), last)], axis=1).astype(np.int64)
    return ImageTokens(
        ids=(begin, *[config.image_token_id] * count, end),
        visual=tuple(range(1, count + 1)),
        inner=TokenSpan(1, count + 1),
        grid=PatchGrid.regular(rows, columns),
        inputs={"pixel_values": batch["pixel_values"], "image_grid_thw": batch["image_grid_thw"]},
        positions=torch.from_numpy(positions),
        extent=last + 1,
    )


def gemma3(image: Image.Image, processor: Any, config: Any, tokens: TextTokenizer) -> ImageTokens:
    """Gemma3: the page squeezed into one square, whose tokens see each other in both directions."""
    batch = processor(images=[image], return_tensors="pt", do_pan_and_scan=False)
    count = int(config.mm_tokens_per_image)
    side = math.isqrt(count)
    ids = (config.boi_token_index, *[config.image_token_id] * count, config.eoi_token_index)
    return ImageTokens(
        ids=ids,
        visual=tuple(range(1, count + 1)),
        inner=TokenSpan(1, count + 1),
        grid=PatchGrid.regular(side, side),
        inputs={"pixel_values": batch["pixel_values"]},
        extent=len(ids),
        bidirectional=TokenSpan(1, count + 1),
        text_before="\n\n",
        text_behind="\n\n",
    )


def gemma4(image: Image.Image, processor: Any, config: Any, tokens: TextTokenizer) -> ImageTokens:
    """Gemma4: one grid near the page's own shape. In some models its tokens see each other in both directions."""
    batch = processor(images=[image], return_tensors="pt")
    patches = batch["image_position_ids"][0].amax(dim=0) + 1
    columns, rows = (int(side) // int(config.vision_config.pooling_kernel_size) for side in patches)
    count = rows * columns
    inner = TokenSpan(1, count + 1)
    return ImageTokens(
        ids=(config.boi_token_id, *[config.image_token_id] * count, config.eoi_token_id),
        visual=tuple(range(1, count + 1)),
        inner=inner,
        grid=PatchGrid.regular(rows, columns),
        inputs={name: batch[name] for name in ("pixel_values", "image_position_ids")},
        extent=count + 2,
        bidirectional=inner if config.text_config.use_bidirectional_attention == "vision" else None,
    )


def mistral3(image: Image.Image, processor: Any, config: Any, tokens: TextTokenizer) -> ImageTokens:
    """Mistral3: one grid at the page's own shape, a break token after each row and an end token at last."""
    cell = int(config.vision_config.patch_size) * int(config.spatial_merge_size)
    batch = processor(images=[image], return_tensors="pt", patch_size={"height": cell, "width": cell})
    high, wide = (int(v) for v in batch["image_sizes"][0])
    rows, columns = high // cell, wide // cell
    line = [*[config.image_token_id] * columns, tokens.token("[IMG_BREAK]")]
    ids = [*(line * rows)[:-1], tokens.token("[IMG_END]")]
    visual = [row * (columns + 1) + column for row in range(rows) for column in range(columns)]
    return ImageTokens(
        ids=tuple(ids),
        visual=tuple(visual),
        inner=TokenSpan(0, len(ids) - 1),
        grid=PatchGrid.regular(rows, columns),
        inputs={"pixel_values": batch["pixel_values"], "image_sizes": torch.as_tensor(batch["image_sizes"])},
        extent=len(ids),
    )
