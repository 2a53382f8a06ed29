"""Image files: odd ones that must be read as they are, and damaged ones."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from pathlib import Path

from PIL import Image

from mmrh_retriever import Page, PageError
from tests.hostile import damage
from tests.hostile.outcomes import Wrong, expect

FORMATS = ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF"]
_TURNED = (5, 6, 7, 8)


def odd(rng: random.Random, folder: Path) -> None:
    """A valid image of any mode and orientation has the size and, but for compression, the colour it was given."""
    kind = rng.choice(FORMATS)
    mode = rng.choice({"JPEG": ["RGB", "L", "CMYK"], "BMP": ["RGB", "L"]}.get(kind, ["RGB", "RGBA", "L", "P", "LA"]))
    if kind == "GIF":
        mode = rng.choice(["P", "L"])
    size = rng.choice([(40, 30), (4, 4), (200, 5), (4, 90), (64, 64)])
    image = Image.new("RGB", size, (200, 200, 200)).convert(mode)
    orientation = rng.choice([1, 1, 2, 3, 5, 6, 7, 8]) if kind in ("PNG", "JPEG", "TIFF", "WEBP") else 1
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    image.save(stream, kind, **({"exif": exif} if orientation > 1 else {}))
    expected = size[::-1] if orientation in _TURNED else size
    source: bytes | Path = stream.getvalue()
    if rng.random() < 0.3:
        source = folder / rng.choice(["a.png", "\x1b[31m]x.png", "\u202egnp", "x" * 200])
        source.write_bytes(stream.getvalue())
        if rng.random() < 0.5:
            (folder / "link").symlink_to(source)
            source = folder / "link"
    try:
        page = Page(image=source)
        pixels = page.pixels()
    except PageError as error:
        raise Wrong(f"a valid {kind} of mode {mode} and {size} was refused: {error}") from error
    expect(
        pixels.size == expected == page.size,
        f"{kind} {mode} {orientation}: {pixels.size} and {page.size}, expected {expected}",
    )
    middle = pixels.getpixel((expected[0] // 2, expected[1] // 2))
    expect(all(abs(value - 200) < 12 for value in middle), f"a {kind} of mode {mode} became {middle}")  # type: ignore[union-attr]


def damaged(rng: random.Random, folder: Path) -> None:
    """A damaged, foreign, endless, vanishing or bomb-like image is refused, or its size is that of its pixels."""
    page = Page(image=_made(rng, folder))
    if rng.random() < 0.1 and isinstance(page.image, Path) and not page.image.is_symlink():
        page.image.unlink()
    pixels = page.pixels()
    expect(pixels.mode == "RGB" and pixels.size == page.size, f"{pixels.size} of a page of {page.size}")


def _made(rng: random.Random, folder: Path) -> bytes | Path:
    stream = io.BytesIO()
    kind = rng.choice([*FORMATS, "PNG", "JPEG", "ICO", "PPM", "EPS", "PDF", "JPEG2000", "AVIF"])
    image = Image.effect_noise((rng.choice([8, 64]), 48), 60).convert("RGB")
    try:
        image.save(stream, kind)
    except (KeyError, OSError, ValueError):  # a build of Pillow without it
        image.save(stream, "PNG")
    data = stream.getvalue()
    choice = rng.randrange(10)
    if choice == 0:
        data = _png(*rng.choice([(2**31 - 1, 2**31 - 1), (50_000, 50_000), (0, 0), (1, 2**30), (8000, 8000)]))
    elif choice < 8:
        data = damage.spoiled(rng, data)
    if rng.random() < 0.7:
        return data
    path = folder / rng.choice(["a.png", "\x1b[0m.jpg", "\udcff.png", "b"])
    kind_of_file = rng.randrange(6)
    if kind_of_file == 0:
        os.mkfifo(path)
    elif kind_of_file == 1:
        path.symlink_to(path)
    elif kind_of_file == 2:
        path.symlink_to("/dev/zero")
    elif kind_of_file == 3:
        path.mkdir()
    else:
        path.write_bytes(data)
    return (
        path if rng.random() < 0.9 else Path(rng.choice(["", "/", "\x00", "a" * 5000, "/proc/self/mem", "/dev/zero"]))
    )


def _png(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(8_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
