"""Page images: opened within limits, checked before a pixel is decoded, and decoded into RGB."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from mmrh_retriever.errors import PageError

MAX_IMAGE_PIXELS = 64_000_000
"""Images with more pixels are refused before they are decoded (a decompression bomb)."""
MIN_IMAGE_SIDE = 4
"""Images narrower or lower than this, in pixels, hold nothing to read and are refused."""
MAX_ASPECT_RATIO = 150.0
"""Longer side over shorter side. Beyond it no image processor keeps the picture legible."""
_TURNING_FORMATS = ("JPEG", "MPO", "TIFF", "WEBP")  # their EXIF orientation is known without decoding


def open_image(
    image: Image.Image | bytes | str | Path,
    *,
    name: str = "the image",
    source: str | None = None,
    page: int | None = None,
) -> Image.Image:
    """Open an image from memory or disk and check its size. No pixel is decoded.

    Args:
        image: a PIL image, the bytes of an image file, or its path.
        name: what error messages call it.
        source: the document it belongs to, for the error.
        page: its 0-based page, for the error.

    Raises:
        PageError: not an image, missing, truncated at its beginning, too small, too large or too long.
    """

    def refuse(problem: str) -> PageError:
        where = f" ({image})" if isinstance(image, (str, Path)) else ""
        return PageError(f"{name[0].upper()}{name[1:]}{where}: {problem}", source=source, page=page)

    if isinstance(image, Image.Image):
        opened = image
    elif not isinstance(image, (bytes, str, Path)):
        raise refuse(f"expected a PIL image, bytes or a path, got {type(image).__name__}.")
    else:
        stream: io.BytesIO | Path = io.BytesIO(image) if isinstance(image, bytes) else Path(image)
        try:
            opened = Image.open(stream)
        except FileNotFoundError as error:
            raise refuse("no such file. Check the path.") from error
        except Image.DecompressionBombError as error:
            raise refuse(f"{error}. At most {MAX_IMAGE_PIXELS:,} pixels are accepted.") from error
        except (OSError, ValueError, SyntaxError) as error:
            raise refuse(
                "these bytes are not an image that Pillow can read. Expected PNG, JPEG, WebP, TIFF or the "
                "like; PDF files go through read_pdf()."
            ) from error
    width, height = opened.size
    if min(width, height) < MIN_IMAGE_SIDE:
        raise refuse(f"{width} x {height} pixels hold nothing to read; at least {MIN_IMAGE_SIDE} per side.")
    if width * height > MAX_IMAGE_PIXELS:
        raise refuse(f"{width} x {height} pixels are more than the {MAX_IMAGE_PIXELS:,} accepted. Scale the page down.")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise refuse(f"{width} x {height} pixels are too long a strip. Cut it into pages.")
    return opened


def shown_size(image: Image.Image) -> tuple[float, float]:
    """Width and height in pixels as the image is shown, after its EXIF orientation."""
    width, height = float(image.width), float(image.height)
    if image.format not in _TURNING_FORMATS:
        return width, height
    turned = int(image.getexif().get(ExifTags.Base.Orientation, 1)) >= 5
    return (height, width) if turned else (width, height)


def as_rgb(image: Image.Image) -> Image.Image:
    """Decode an image into RGB: turned as its EXIF orientation says, transparency on white.

    Raises:
        OSError, ValueError, SyntaxError: Pillow's own, if the file is damaged.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        ground = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, layered).convert("RGB")
    if image.mode.startswith("I") or image.mode == "F":
        return deep_to_grey(image).convert("RGB")
    return image.convert("RGB")


def deep_to_grey(image: Image.Image) -> Image.Image:
    """A 16 or 32-bit grey image stretched onto 0 to 255 (Pillow's own conversion clips it to white)."""
    values = np.asarray(image, dtype=np.float64)
    top = 65535.0 if values.max() > 255 else 255.0
    return Image.fromarray(np.clip(values / top * 255.0, 0, 255).astype(np.uint8))
