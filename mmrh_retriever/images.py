"""Page images: opened within limits, checked before a pixel is decoded, and decoded into RGB."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, TiffImagePlugin

from mmrh_retriever.errors import PageError
from mmrh_retriever.files import is_special

MAX_IMAGE_PIXELS = 64_000_000
"""Images with more pixels are refused before they are decoded (a decompression bomb)."""
MIN_IMAGE_SIDE = 4
"""Images narrower or lower than this, in pixels, hold nothing to read and are refused."""
MAX_ASPECT_RATIO = 150.0
"""Longer side over shorter side. Beyond it no image processor keeps the picture legible."""
IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are opened. EPS and its like start another program; ICO and its like hide another picture."""

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""What the names of image files end in, where files of a folder are chosen by their names."""
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_PNG_NOTES = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")  # chunks that may say how a PNG is turned


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
    if isinstance(image, (str, Path)) and is_special(image):
        raise refuse("not a plain file, but a pipe or a device. Write it into a file first.")
    file = io.BytesIO(image) if isinstance(image, bytes) else image
    try:
        opened = file if isinstance(file, Image.Image) else Image.open(file, formats=image_formats())
    except FileNotFoundError as problem:
        raise refuse("no such file. Check the path.") from problem
    except Image.DecompressionBombError as problem:
        raise refuse(f"{problem}. At most {MAX_IMAGE_PIXELS:,} pixels are accepted.") from problem
    except Exception as problem:  # Pillow's readers raise what they happen to run into
        raise refuse(
            f"these bytes are not an image that is read here. Expected {', '.join(IMAGE_FORMATS)}; PDF files go "
            "through read_pdf()."
        ) from problem
    if isinstance(opened, TiffImagePlugin.TiffImageFile) and opened is not file:
        opened.filename = ""  # or Pillow maps the file into memory with the sides of a turned picture swapped
    width, height = opened.size
    if min(width, height) < MIN_IMAGE_SIDE and not any_shape:
        raise refuse(f"{width} x {height} pixels hold nothing to read; at least {MIN_IMAGE_SIDE} per side.")
    if width * height > MAX_IMAGE_PIXELS:
        raise refuse(f"{width} x {height} pixels are more than the {MAX_IMAGE_PIXELS:,} accepted. Scale the page down.")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height) and not any_shape:
        raise refuse(f"{width} x {height} pixels are too long a strip. Cut it into pages.")
    return opened


def image_formats() -> list[str]:
    """Those of ``IMAGE_FORMATS`` that the installed Pillow reads."""
    Image.init()
    return [kind for kind in IMAGE_FORMATS if kind in Image.OPEN]


def shown_size(image: Image.Image) -> tuple[float, float]:
    """Width and height in pixels as :func:`as_rgb` gives the image, turned by its orientation.

    No pixel is decoded, but for a PNG with notes behind its pixels. A damaged file raises what Pillow raises.
    """
    width, height = image.size
    if isinstance(image, PngImagePlugin.PngImageFile) and not _has_late_notes(image):
        exif = Image.Image.getexif(image)  # PNG's own method decodes the pixels to look behind them
    else:
        exif = image.getexif()
    if exif.get(ExifTags.Base.Orientation) not in _TURNED:
        return float(width), float(height)
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # newer Pillows have swapped the sides already
        tags = image.tag_v2
        width, height = tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH]
    return float(height), float(width)


def _has_late_notes(image: PngImagePlugin.PngImageFile) -> bool:
    """Whether a PNG that is not decoded yet has text or EXIF behind its pixels."""
    stream: IO[bytes] | None = image.fp
    if stream is None or stream.closed:
        return False
    before, behind = stream.tell(), False
    stream.seek(8)
    try:
        while len(head := stream.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            behind |= kind == b"IDAT"
            if behind and kind in _PNG_NOTES:
                return True
            stream.seek(length + 4, io.SEEK_CUR)
        return False
    finally:
        stream.seek(before)


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
