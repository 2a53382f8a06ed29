"""How families that cut an image into tiles write it as tokens: one function per family, as in ``image_tokens.py``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from transformers.image_processing_utils import select_best_resolution
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from mmrh_retriever.errors import UnsupportedModelError
from mmrh_retriever.model.image_tokens import ImageTokens
from mmrh_retriever.types import FloatArray, PatchGrid, TokenSpan, grid_boxes

if TYPE_CHECKING:
    from mmrh_retriever.model.tokenizing import TextTokenizer


def internvl(image: Image.Image, processor: Any, config: Any, tokens: TextTokenizer) -> ImageTokens:
    """InternVL: square tiles in the arrangement nearest to the page's shape, then a thumbnail of the whole."""
    batch = processor(images=[image], return_tensors="pt", crop_to_patches=True)
    tiles = int(batch["num_patches"][0])
    side = math.isqrt(int(config.image_seq_length))
    rows, columns = _checked_tiles(image, tiles, nearest_tiles(image, processor))
    count = tiles * side * side
    ids = (tokens.token("<img>"), *[config.image_token_id] * count, tokens.token("</img>"))
    return ImageTokens(
        ids=ids,
        visual=tuple(range(1, count + 1)),
        inner=TokenSpan(1, count + 1),
        grid=_tiles_and_overview(rows, columns, side),
        inputs={"pixel_values": batch["pixel_values"]},
        extent=len(ids),
    )


def aya_vision(image: Image.Image, processor: Any, config: Any, tokens: TextTokenizer) -> ImageTokens:
    """Aya Vision: numbered square tiles as InternVL's, then the whole page under a label of its own."""
    batch = processor(images=[image], return_tensors="pt", crop_to_patches=True)
    tiles = int(batch["num_patches"][0])
    rows, columns = _checked_tiles(image, tiles, nearest_tiles(image, processor))
    labels = [_named(tokens, f"TILE_{number}") for number in range(1, tiles)] + [_named(tokens, "TILE_GLOBAL")]
    return _between_markers(batch, config, tokens, [(label, []) for label in labels], (rows, columns))


def cohere2_vision(image: Image.Image, processor: Any, config: Any, tokens: TextTokenizer) -> ImageTokens:
    """Cohere2 Vision: square tiles and a thumbnail, a line break token behind each."""
    batch = processor(images=[image], return_tensors="pt", crop_to_patches=True)
    tiles = int(batch["num_patches"][0])
    rows, columns = _checked_tiles(image, tiles, holding_tiles(image, processor))
    line_break = [tokens.token("<|IMG_LINE_BREAK|>")]
    return _between_markers(batch, config, tokens, [([], line_break)] * tiles, (rows, columns))


def _between_markers(
    batch: Any,
    config: Any,
    tokens: TextTokenizer,
    around: Sequence[tuple[list[int], list[int]]],
    shape: tuple[int, int],
) -> ImageTokens:
    """Cohere's tiles in ``shape`` of rows and columns, then the overview; ``around`` stands before and behind each."""
    vision = config.vision_config
    side = int(vision.image_size) // int(vision.patch_size) // int(config.downsample_factor)
    ids = [tokens.token("<|START_OF_IMG|>")]
    visual: list[int] = []
    for before, behind in around:
        ids += before
        visual += range(len(ids), len(ids) + side * side)
        ids += [config.image_token_id] * (side * side) + behind
    ids.append(tokens.token("<|END_OF_IMG|>"))
    return ImageTokens(
        ids=tuple(ids),
        visual=tuple(visual),
        inner=TokenSpan(1, len(ids) - 1),
        grid=_tiles_and_overview(*shape, side),
        inputs={"pixel_values": batch["pixel_values"]},
        extent=len(ids),
    )


def lfm2_vl(image: Image.Image, processor: Any, config: Any, tokens: TextTokenizer) -> ImageTokens:
    """LFM2-VL: a small page whole at its own shape; a large one in labelled tiles, then whole under a label."""
    batch = processor(images=[image], return_tensors="pt", return_row_col_info=True)
    rows, columns = int(batch["image_rows"][0]), int(batch["image_cols"][0])
    tiles = _tile_boxes(rows, columns)
    labels = [f"<|img_row_{row + 1}_col_{column + 1}|>" for row in range(rows) for column in range(columns)]
    factor = int(config.downsample_factor)
    sides = [(int(high) // factor, int(wide) // factor) for high, wide in batch["spatial_shapes"]]
    if len(tiles) == 1:
        labels = [""]
    elif len(sides) > len(tiles):
        tiles.append((0.0, 0.0, 1.0, 1.0))
        labels.append("<|img_thumbnail|>")
    ids = [tokens.token("<|image_start|>")]
    visual: list[int] = []
    for label, (high, wide) in zip(labels, sides, strict=True):
        ids += _named(tokens, label) if label else []
        visual += range(len(ids), len(ids) + high * wide)
        ids += [config.image_token_id] * (high * wide)
    ids.append(tokens.token("<|image_end|>"))
    boxes = [grid_boxes(tile, high, wide) for tile, (high, wide) in zip(tiles, sides, strict=True)]
    return ImageTokens(
        ids=tuple(ids),
        visual=tuple(visual),
        inner=TokenSpan(1, len(ids) - 1),
        grid=PatchGrid(np.concatenate(boxes), rows * sides[0][0], columns * sides[0][1]),
        inputs={name: batch[name] for name in ("pixel_values", "pixel_attention_mask", "spatial_shapes")},
        extent=len(ids),
    )


def llava_onevision(image: Image.Image, processor: Any, config: Any, tokens: TextTokenizer) -> ImageTokens:
    """LLaVA-OneVision: an overview square, then the page's tiles joined, unpadded, a newline token per row.

    Every page is written in the single-image ("anyres") way, also among others. The family's way for several
    images keeps only the overview, which is too coarse to read.
    """
    most = int(str(getattr(config, "vision_aspect_ratio", "anyres_max_9")).removeprefix("anyres_max_"))
    return _joined_tiles(image, processor, config, most)


def llava_next(image: Image.Image, processor: Any, config: Any, tokens: TextTokenizer) -> ImageTokens:
    """LLaVA-NeXT (1.6): as LLaVA-OneVision, the joined tiles at their full size."""
    return _joined_tiles(image, processor, config, None)


def _joined_tiles(image: Image.Image, processor: Any, config: Any, most: int | None) -> ImageTokens:
    """An overview, then the joined tiles, shrunk to ``most`` tiles' tokens if that is a number."""
    batch = processor(images=[image], return_tensors="pt")
    side = int(config.vision_config.image_size) // int(config.vision_config.patch_size)
    grid = grid_boxes((0.0, 0.0, 1.0, 1.0), side, side)
    count, visual = side * side, list(range(side * side))
    rows, columns = side, side
    if batch["pixel_values"].shape[1] > 1:
        rows, columns = _anyres_grid(image, config, side, most)
        grid = np.concatenate([grid, grid_boxes((0.0, 0.0, 1.0, 1.0), rows, columns)])
        for row in range(rows):
            start = count + row * (columns + 1)
            visual.extend(range(start, start + columns))
        count += rows * (columns + 1)
    else:
        count += 1
    return ImageTokens(
        ids=(config.image_token_id,) * count,
        visual=tuple(visual),
        inner=TokenSpan(0, count),
        grid=PatchGrid(grid, rows, columns),
        inputs={"pixel_values": batch["pixel_values"], "image_sizes": batch["image_sizes"]},
        extent=count,
    )


def idefics3(image: Image.Image, processor: Any, config: Any, tokens: TextTokenizer) -> ImageTokens:
    """SmolVLM and Idefics3: labelled square tiles row by row, then the whole page once more."""
    batch = processor(images=[[image]], return_tensors="pt", return_row_col_info=True)
    rows, columns = int(batch["rows"][0][0]), int(batch["cols"][0][0])
    side = int(config.vision_config.image_size) // int(config.vision_config.patch_size) // int(config.scale_factor)
    around = tokens.token("<fake_token_around_image>")
    run = [config.image_token_id] * (side * side)
    ids: list[int] = []
    visual: list[int] = []
    boxes: list[FloatArray] = []
    for number, tile in enumerate(_tile_boxes(rows, columns)):
        row, column = divmod(number, columns)
        ids += [around, *_named(tokens, f"<row_{row + 1}_col_{column + 1}>")]
        visual += range(len(ids), len(ids) + len(run))
        ids += run
        boxes.append(grid_boxes(tile, side, side))
        if column == columns - 1:
            # the last row's newline and the blank line behind it are tokenised together
            ids += tokens.plain("\n\n" if row == rows - 1 else "\n")
    ids += [around, *_named(tokens, "<global-img>")]
    visual += range(len(ids), len(ids) + len(run))
    ids += [*run, around]
    boxes.append(grid_boxes((0.0, 0.0, 1.0, 1.0), side, side))
    inputs = {key: batch[key] for key in ("pixel_values", "pixel_attention_mask") if key in batch}
    return ImageTokens(
        ids=tuple(ids),
        visual=tuple(visual),
        inner=TokenSpan(1, len(ids) - 1),
        grid=PatchGrid(np.concatenate(boxes), max(rows, 1) * side, max(columns, 1) * side),
        inputs=inputs,
        extent=len(ids),
    )


def _named(tokens: TextTokenizer, text: str) -> list[int]:
    """A marker that is one special token in some checkpoints and plain text in others."""
    try:
        return [tokens.token(text)]
    except UnsupportedModelError:
        return tokens.plain(text)


def _tile_boxes(rows: int, columns: int) -> list[tuple[float, float, float, float]]:
    return [
        (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
        for row in range(rows)
        for column in range(columns)
    ]


def _tiles_and_overview(rows: int, columns: int, side: int) -> PatchGrid:
    """Tiles of ``side`` x ``side`` tokens, row by row, then the whole page, unless it is the only tile."""
    boxes = [grid_boxes(tile, side, side) for tile in _tile_boxes(rows, columns)]
    if len(boxes) > 1:
        boxes.append(grid_boxes((0.0, 0.0, 1.0, 1.0), side, side))
    return PatchGrid(np.concatenate(boxes), rows * side, columns * side)


def nearest_tiles(image: Image.Image, processor: Any) -> tuple[int, int]:
    """Rows and columns of the tiling whose shape is nearest to the page's."""
    size = (int(processor.size["height"]), int(processor.size["width"]))
    limits = int(processor.min_patches), int(processor.max_patches)
    columns, rows = get_optimal_tiled_canvas((image.height, image.width), size, *limits)
    return rows, columns


def holding_tiles(image: Image.Image, processor: Any) -> tuple[int, int]:
    """Rows and columns of the tiling that enlarges the page least, or, where all shrink it, shrinks it least."""
    most, side = int(processor.max_patches), int(processor.size["height"])
    every = [(rows, columns) for columns in range(1, most + 1) for rows in range(1, most // columns + 1)]
    scales = {
        (rows, columns): min(columns * side / image.width, rows * side / image.height)
        for rows, columns in sorted(every, key=math.prod)
    }
    larger = {shape: scale for shape, scale in scales.items() if scale >= 1}
    return min(larger, key=larger.__getitem__) if larger else max(scales, key=scales.__getitem__)


def _checked_tiles(image: Image.Image, tiles: int, found: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns as found, if the processor cut the page into as many ``tiles`` (the last is a thumbnail)."""
    if tiles == 1:
        return 1, 1
    rows, columns = found
    if rows * columns != tiles - 1:
        raise UnsupportedModelError(
            f"The image processor cut a {image.width} x {image.height} page into {tiles - 1} tiles where {rows} rows "
            f"of {columns} were expected. Use the image processor that ships with the model."
        )
    return rows, columns


def _anyres_grid(image: Image.Image, config: Any, side: int, most: int | None) -> tuple[int, int]:
    """Rows and columns of LLaVA's joined tiles after the padding is cut off, shrunk to ``most`` tiles' tokens."""
    wide, high = image.size
    best_high, best_wide = select_best_resolution((high, wide), config.image_grid_pinpoints)
    tile = int(config.vision_config.image_size)
    rows, columns = side * (best_high // tile), side * (best_wide // tile)
    if wide / high > columns / rows:
        rows -= (rows - int(round(high * (columns / wide), 7))) // 2 * 2
    else:
        columns -= (columns - int(round(wide * (rows / high), 7))) // 2 * 2
    if most is None:
        return rows, columns
    shrink = math.sqrt(rows * columns / (most * side * side))
    if shrink > 1.1:
        rows, columns = int(rows // shrink), int(columns // shrink)
    return rows, columns
