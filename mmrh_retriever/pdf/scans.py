"""What stands on a page that is only a picture, found from its ink."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter
from scipy import ndimage

from mmrh_retriever.pdf.boxes import Mask, area, extents, label, without_nested
from mmrh_retriever.types import Box

_BACKGROUND = 0.8  # of the picture: connected ink over more is a frame around the page
_CONTRAST = 30  # grey levels between neighbouring pixels, from 0 to 255, that make an edge


def inked_boxes(image: Image.Image, size: tuple[float, float]) -> list[tuple[Box, str]]:
    """Boxes around connected areas of strong contrast, in the units of ``size``, each with its kind."""
    grey = image.convert("L")
    grey.thumbnail((1000, 1000))
    levels = np.asarray(grey)
    ink = ink_of(grey)
    height = _letter_height(ink)
    boxes = _joined_ink(ink, height)
    if any(area(box) > _BACKGROUND * ink.size for box in boxes):
        # Rules and frames connect most of the page: try again without them.
        ink &= ~(_long_lines(ink, 0) | _long_lines(ink, 1))
        boxes = _joined_ink(ink, height)
    scale = (size[0] / grey.width, size[1] / grey.height)
    found = []
    for box in without_nested(boxes):
        x0, y0, x1, y1 = (int(v) for v in box)
        if max(x1 - x0, y1 - y0) < 1.5 * height or min(x1 - x0, y1 - y0) < 0.5 * height:
            continue
        if y1 - y0 < 2 * height and _strokes(ink[y0:y1, x0:x1].mean(axis=1)):
            continue  # a rule
        kind = _kind_of_ink(levels[y0:y1, x0:x1], ink[y0:y1, x0:x1], height)
        found.append(((x0 * scale[0], y0 * scale[1], x1 * scale[0], y1 * scale[1]), kind))
    return found


def _joined_ink(ink: Mask, height: float) -> list[Box]:
    """Boxes, in pixels, around letters and strokes that stand close to each other for their height."""
    return extents(label(spread(ink, right=round(1.2 * height) + 1, down=round(0.6 * height) + 1)))


def ink_of(image: Image.Image) -> Mask:
    """Where a grey picture has strong contrast: edges, letters, texture. ``(height, width)``."""
    bright = np.asarray(image.filter(ImageFilter.MaxFilter(3)), dtype=np.int16)
    dark = np.asarray(image.filter(ImageFilter.MinFilter(3)), dtype=np.int16)
    return np.asarray(bright - dark > _CONTRAST)


def spread(mask: Mask, *, right: int, down: int) -> Mask:
    """The mask with gaps of up to ``right`` and ``down`` pixels closed."""
    across = ndimage.maximum_filter1d(mask, right + 1, axis=1, mode="constant")
    return np.asarray(ndimage.maximum_filter1d(across, down + 1, axis=0, mode="constant"))


def _long_lines(ink: Mask, axis: int) -> Mask:
    """Thin straight lines over more than a quarter of the page along ``axis``."""
    lines = _long_runs(ink, ink.shape[axis] // 4, axis)
    return lines & ~_long_runs(lines, 7, 1 - axis)


def _long_runs(mask: Mask, length: int, axis: int) -> Mask:
    """What lies in unbroken runs of at least ``length`` pixels along ``axis``."""
    size = (max(1, length), 1) if axis == 0 else (1, max(1, length))
    return np.asarray(ndimage.grey_opening(mask.astype(np.uint8), size, mode="constant"), dtype=bool)


def _letter_height(ink: Mask) -> float:
    """The usual height of a letter, in pixels."""
    heights = [y1 - y0 for x0, y0, x1, y1 in extents(label(ink)) if 4 <= y1 - y0 <= 60 and x1 - x0 >= 3]
    return float(np.median(heights)) if heights else 12.0


def _kind_of_ink(levels: npt.NDArray[np.uint8], ink: Mask, height: float) -> str:
    """What an inked area looks like: lines of letters, a photograph, or a drawing."""
    shades = np.bincount(levels.ravel() >> 3, minlength=34)
    ground = max(shades[i : i + 3].sum() for i in range(32)) / levels.size  # letters stand on an even ground
    if ground < 0.4 and len(ink) > 4 * height:
        return "image"
    if len(ink) < 3.2 * height:
        return "title" if len(ink) > 2.4 * height else "text"
    rows = ink.mean(axis=1)
    if _strokes(rows) >= 3 and _strokes(ink.mean(axis=0)) >= 3:
        return "table"
    valleys = rows < 0.25 * rows.max()
    starts = int((np.diff(valleys.astype(np.int8)) == 1).sum())
    lines = len(ink) / max(1.0, 2.2 * height)
    return "text" if starts >= 0.5 * lines and 0.08 < valleys.mean() < 0.75 else "figure"


def _strokes(profile: npt.NDArray[np.float64]) -> int:
    """How many lines run through nearly the whole of an area, from the share of ink in each of its rows."""
    return int((np.diff((profile > 0.85).astype(np.int8), prepend=0) == 1).sum())
