"""Pictures on a page that end early, of which PDFium says nothing: declared and decoded lengths are compared.

Uncompressed and losslessly packed pictures, and JPEGs, are looked at; JPEG 2000 and fax pictures are not.
"""

from __future__ import annotations

import ctypes
import io
import math
from collections.abc import Iterator
from typing import Any

from PIL import Image
from pypdfium2 import raw

_MOST_OBJECTS = 20_000  # of a page, forms' included, that are looked through
_DEEPEST_FORM = 8
_SPARE = 16  # bytes that may follow a picture's last row
_BITS = {1: (1,), 8: (2, 4, 8), 24: (12, 16, 24)}
"""Bits of a pixel in the file that PDFium may decode to so many."""
_LOSSLESS = {b"FlateDecode", b"Fl", b"LZWDecode", b"LZW", b"RunLengthDecode", b"RL", b"ASCII85Decode", b"A85",
             b"ASCIIHexDecode", b"AHx"}  # fmt: skip
_JPEG = (b"DCTDecode", b"DCT")


def cut_pictures(page: Any) -> list[str]:
    """What is missing of the pictures of a loaded page. PDFium is not thread-safe: the caller holds its lock."""
    return list(dict.fromkeys(problem for image in _images(page) if (problem := _problem(page, image)) is not None))


def _images(page: Any) -> Iterator[Any]:
    waiting = [(raw.FPDFPage_GetObject, page, raw.FPDFPage_CountObjects(page), 0)]
    left = _MOST_OBJECTS
    while waiting:
        get, parent, count, depth = waiting.pop()
        for index in range(min(count, left)):
            found = get(parent, index)
            kind = raw.FPDFPageObj_GetType(found)
            if kind == raw.FPDF_PAGEOBJ_IMAGE:
                yield found
            elif kind == raw.FPDF_PAGEOBJ_FORM and depth < _DEEPEST_FORM:
                waiting.append((raw.FPDFFormObj_GetObject, found, raw.FPDFFormObj_CountObjects(found), depth + 1))
        left -= min(count, left)


def _problem(page: Any, image: Any) -> str | None:
    filters = [_filter(image, index) for index in range(max(0, raw.FPDFImageObj_GetImageFilterCount(image)))]
    is_jpeg = bool(filters) and filters[-1] in _JPEG
    if not is_jpeg and not set(filters) <= _LOSSLESS:
        return None
    known = raw.FPDF_IMAGEOBJ_METADATA()
    if not raw.FPDFImageObj_GetImageMetadata(image, page, known):
        return None
    size = f"of {known.width} x {known.height} pixels"
    if known.width and known.height and not known.bits_per_pixel:
        return f"cannot decode a picture {size}"
    length = int(raw.FPDFImageObj_GetImageDataDecoded(image, None, 0))
    if is_jpeg:
        buffer = ctypes.create_string_buffer(length)
        raw.FPDFImageObj_GetImageDataDecoded(image, buffer, length)
        return f"truncated image: a JPEG {size} ends early" if _is_cut_jpeg(buffer.raw, known.height) else None
    lengths = [math.ceil(known.width * bits / 8) * known.height for bits in _BITS.get(known.bits_per_pixel, ())]
    whole = not lengths or length >= lengths[-1] or any(full <= length <= full + _SPARE for full in lengths)
    return None if whole else f"truncated image: {length:,} of {lengths[-1]:,} bytes of a picture {size}"


def _filter(image: Any, index: int) -> bytes:
    buffer = ctypes.create_string_buffer(64)
    raw.FPDFImageObj_GetImageFilter(image, index, buffer, len(buffer))
    return bytes(buffer.value)


def _is_cut_jpeg(data: bytes, rows: int) -> bool:
    """Whether a JPEG has no end mark and can't be decoded without it, or says itself that it has fewer rows."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as opened:
            if opened.height < rows:
                return True
            if b"\xff\xd9" not in data[-64:]:
                opened.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return True
    return False
