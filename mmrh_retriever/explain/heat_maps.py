"""Heat maps: where on a page the attention went, with ranked boxes, drawn with Pillow."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from mmrh_retriever.errors import PageError, SettingsError
from mmrh_retriever.files import make_folder, write_atomically
from mmrh_retriever.ranking.region_scores import mass_array
from mmrh_retriever.types import FloatArray, ScoredPage, ScoredRegion

MIN_DRAWN_SIDE = 320
"""Smaller page images are enlarged, so that their longer side has this many pixels, before anything is drawn."""

RAMP = np.array([(255, 224, 102), (253, 160, 46), (229, 72, 36), (166, 12, 62)], dtype=np.float64)  # low to high
"""A heat map's colours from low to high, as red, green and blue in 0 to 255."""
_BOX_COLOUR = (16, 78, 139)
_PERCENTILE = 99.5  # of the positive cells: what is above has the full colour, so that one sink can't hide the rest
_WRITABLE = (".png", ".jpg", ".jpeg", ".webp")


def attention_array(scored: ScoredPage, *, shape: tuple[int, int] | None = None) -> FloatArray:
    """The calibrated attention mass over a page as an array.

    Args:
        scored: a page ranked with ``with_tokens=True``.
        shape: rows and columns; those of the page's visual tokens by default.

    Returns:
        ``(rows, columns)`` float32, the mass on each cell. It is negative where the null question looks more. The
        array adds up to the image's part of the page's score.

    Raises:
        PageError: a page without token scores.
    """
    if scored.token_scores is None or scored.grid is None:
        raise scored.page.error(
            f"{scored.page.name} has no scores of its visual tokens. Rank it with with_tokens=True; a page that the "
            "model read as text has none."
        )
    return mass_array(scored.token_scores, scored.grid, shape=shape)


def heat(scored: ScoredPage, *, shape: tuple[int, int] | None = None) -> FloatArray:
    """Deprecated: the former name of :func:`attention_array`."""
    warnings.warn("heat() is called attention_array() now.", DeprecationWarning, stacklevel=2)
    return attention_array(scored, shape=shape)


def full_colour(pages: Sequence[ScoredPage]) -> float:
    """The ``scale`` under which the heat maps of several pages can be compared: the largest of their own.

    In attention mass per page area, as in :func:`heat_map`. Pages without token scores don't count; 0 if none has any.
    """
    return max((_own_scale(_density(page)) for page in pages if page.token_scores is not None), default=0.0)


def heat_map(
    scored: ScoredPage,
    *,
    regions: Sequence[ScoredRegion] = (),
    scale: float | None = None,
    opacity: float = 0.62,
    max_side: int | None = None,
) -> Image.Image:
    """A page with the attention on it in colours, and with ranked boxes if they are given.

    The page turns grey. Colours go from transparent over yellow and orange to dark red; negative scores have none.
    Cells are interpolated smoothly; :func:`attention_array` gives the numbers themselves.

    Args:
        scored: a page ranked with ``with_tokens=True``.
        regions: boxes to draw with their ranks, such as :meth:`Reranker.rank_regions` gives. Those of other pages
            are left out.
        scale: the attention mass per page area that gets the full colour (1 is the mass 1 evenly over the page); the
            page's own 99.5th percentile by default. Pages drawn with one scale can be compared, see
            :func:`full_colour`.
        opacity: how much of the page the full colour hides, 0 to 1.
        max_side: the picture's longer side in pixels at most; the page image's own by default.

    Returns:
        An RGB image in the page's shape.

    Raises:
        PageError: a page without token scores, without an image, or one that can't be drawn.
        SettingsError: an opacity outside of 0 to 1.
    """
    if not 0.0 <= opacity <= 1.0:
        raise SettingsError(f"opacity lies in 0 to 1, got {opacity}.")
    density = _density(scored)
    image = _sized(scored.page.pixels(), max_side)
    top = _own_scale(density) if scale is None else scale
    strength = np.clip(density / top, 0.0, 1.0) if top > 0.0 else np.zeros_like(density)
    smooth = Image.fromarray(strength.astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC)
    drawn = _overlay(image, np.clip(np.asarray(smooth, dtype=np.float64), 0.0, 1.0), opacity)
    return draw_regions(drawn, [region for region in regions if region.page is scored.page])


def save_heat_map(
    scored: ScoredPage,
    path: str | Path,
    *,
    regions: Sequence[ScoredRegion] = (),
    scale: float | None = None,
    opacity: float = 0.62,
    max_side: int | None = None,
) -> Path:
    """Write :func:`heat_map` to a file. Its ending says the format: ``.png``, ``.jpg`` or ``.webp``.

    Folders that are missing are made.

    Raises:
        PageError: as for :func:`heat_map`, or another ending.
        SettingsError: as for :func:`heat_map`.
        DataError: the file can't be written.
    """
    target = Path(path)
    if target.suffix.lower() not in _WRITABLE:
        raise PageError(
            f"A heat map can't be written to {target.name!r}: its ending is {target.suffix or 'missing'}. Expected one "
            f"of {', '.join(_WRITABLE)}.",
            source=str(target),
        )
    drawn = heat_map(scored, regions=regions, scale=scale, opacity=opacity, max_side=max_side)
    make_folder(target.parent)
    memory = io.BytesIO()
    drawn.save(memory, format=Image.registered_extensions()[target.suffix.lower()])
    write_atomically(target, memory.getvalue())
    return target


def draw_regions(image: Image.Image, regions: Sequence[ScoredRegion]) -> Image.Image:
    """A copy of a page's image with boxes and their ranks. The best box has a stronger line.

    Args:
        image: the page in any size.
        regions: boxes of that one page, in the units of its ``size``.

    Raises:
        PageError: a page without a size.
    """
    drawn = image.copy()
    pen = ImageDraw.Draw(drawn, "RGBA")
    unit = max(drawn.size) / 1000
    for region in sorted(regions, key=lambda region: -region.rank):  # the best is drawn last, over the others
        if region.page.size is None:
            raise region.page.error(
                f"Boxes of {region.page.name} can't be drawn: the page has no size. Give Page(size=(width, height))."
            )
        across, down = drawn.width / region.page.size[0], drawn.height / region.page.size[1]
        x0, y0, x1, y1 = region.box
        width = max(1, round((4.0 if region.rank == 1 else 2.2) * unit))
        box = (  # the line runs around the box, not over what stands in it
            max(0.0, x0 * across - width),
            max(0.0, y0 * down - width),
            min(drawn.width - 1.0, x1 * across + width),
            min(drawn.height - 1.0, y1 * down + width),
        )
        pen.rectangle(box, outline=(*_BOX_COLOUR, 255), width=width)
        _badge(pen, str(region.rank), box[:2], max(10.0, 17 * unit), drawn.size)
    return drawn


def _density(scored: ScoredPage) -> npt.NDArray[np.float64]:
    """``(rows, columns)``: attention mass per page area."""
    cells = attention_array(scored).astype(np.float64)
    return cells * cells.size


def _own_scale(density: npt.NDArray[np.float64]) -> float:
    positive = density[density > 0.0]
    return float(np.percentile(positive, _PERCENTILE)) if positive.size else 0.0


def _sized(image: Image.Image, max_side: int | None) -> Image.Image:
    longest = max(image.size)
    wanted = max(longest, MIN_DRAWN_SIDE) if max_side is None else min(max(longest, MIN_DRAWN_SIDE), max_side)
    if wanted == longest:
        return image
    size = (max(1, round(image.width * wanted / longest)), max(1, round(image.height * wanted / longest)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _overlay(image: Image.Image, strength: npt.NDArray[np.float64], opacity: float) -> Image.Image:
    """Colours over a grey page; ``strength`` is ``(height, width)`` in 0 to 1."""
    grey = np.asarray(image.convert("L"), dtype=np.float64)[..., None]  # so that every colour is attention
    stops = np.linspace(0.0, 1.0, len(RAMP))
    colour = np.stack([np.interp(strength, stops, channel) for channel in RAMP.T], axis=-1)
    alpha = (opacity * strength**0.7)[..., None]  # the power shows weak attention, too
    return Image.fromarray(np.round(grey * (1.0 - alpha) + colour * alpha).astype(np.uint8))


def _badge(
    pen: ImageDraw.ImageDraw, text: str, corner: tuple[float, float], size: float, page: tuple[int, int]
) -> None:
    """A rank on a filled label beside a box's upper left corner, or over it where the page ends."""
    font = ImageFont.load_default(size)
    wide, high = max(pen.textlength(text, font=font) + size * 0.6, size * 1.3), size * 1.3
    x = corner[0] - wide if corner[0] >= wide else min(corner[0], page[0] - wide)
    y = min(corner[1], page[1] - high) if corner[0] >= wide else max(corner[1] - high, 0.0)
    pen.rounded_rectangle((x, y, x + wide, y + high), radius=size * 0.25, fill=(*_BOX_COLOUR, 255))
    pen.text((x + wide / 2, y + high / 2), text, font=font, fill="white", anchor="mm")
