"""Page images: opened within limits, checked before a pixel is decoded, and decoded into RGB."""

from __future__ import annotations

import io
from collections.abc import Callable
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
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""What the names of image files end in, where files of a folder are chosen by their names."""
_TURNING_FORMATS = ("JPEG", "MPO", "TIFF", "WEBP")  # their EXIF orientation is known without decoding


def open_image(image: object, name: str, error: Callable[[str], PageError], *, any_shape: bool = False) -> Image.Image:
    """Open a PIL image, the bytes of an image file or its path, and check its size. No pixel is decoded.

    With ``any_shape`` an image may be small or long, but not large.

    Raises:
        PageError: made by ``error``; not an image, missing, truncated at its beginning, too small, too large or too
            long. ``name`` is what the message calls the image.
    """

    def refuse(problem: str) -> PageError:
        where = f" ({image})" if isinstance(image, (str, Path)) else ""
        return error(f"{name[0].upper()}{name[1:]}{where}: {problem}")

    if not isinstance(image, (Image.Image, bytes, str, Path)):
        raise refuse(f"expected a PIL image, bytes or a path, got {type(image).__name__}.")
    file = io.BytesIO(image) if isinstance(image, bytes) else image
    try:
        opened = file if isinstance(file, Image.Image) else Image.open(file)
    except FileNotFoundError as problem:
        raise refuse("no such file. Check the path.") from problem
    except Image.DecompressionBombError as problem:
        raise refuse(f"{problem}. At most {MAX_IMAGE_PIXELS:,} pixels are accepted.") from problem
    except (OSError, ValueError, SyntaxError) as problem:
        raise refuse(
            "these bytes are not an image that Pillow can read. Expected PNG, JPEG, WebP, TIFF or the like; PDF files "
            "go through read_pdf()."
        ) from problem
    width, height = opened.size
    if min(width, height) < MIN_IMAGE_SIDE and not any_shape:
        raise refuse(f"{width} x {height} pixels hold nothing to read; at least {MIN_IMAGE_SIDE} per side.")
    if width * height > MAX_IMAGE_PIXELS:
        raise refuse(f"{width} x {height} pixels are more than the {MAX_IMAGE_PIXELS:,} accepted. Scale the page down.")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height) and not any_shape:
        raise refuse(f"{width} x {height} pixels are too long a strip. Cut it into pages.")
    return opened


def shown_size(image: Image.Image) -> tuple[float, float]:
    """Width and height in pixels as the image is shown, after its EXIF orientation."""
    turned = image.format in _TURNING_FORMATS and int(image.getexif().get(ExifTags.Base.Orientation, 1)) >= 5
    return (float(image.height), float(image.width)) if turned else (float(image.width), float(image.height))


def as_rgb(image: Image.Image) -> Image.Image:
    """Decode an image into RGB: turned as its EXIF orientation says, transparency on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    if image.mode.startswith("I") or image.mode == "F":  # 16 or 32-bit grey, which Pillow would clip to white
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if values.max() > 255 else 255.0
        image = Image.fromarray(np.clip(values / top * 255.0, 0, 255).astype(np.uint8))
    return image.convert("RGB")
