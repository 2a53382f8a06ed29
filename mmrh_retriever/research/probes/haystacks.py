"""What needles are hidden in: text passages and pictures, generated or from the user's files.

Everything generated is a function of a seed; pictures are drawn only when their pixels are asked for.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmrh_retriever.errors import DataError
from mmrh_retriever.files import files_below, read_text
from mmrh_retriever.images import IMAGE_ENDINGS
from mmrh_retriever.pdf.reader import iter_pdf
from mmrh_retriever.research.probes.invented_text import draw_prose
from mmrh_retriever.types import Page

TEXT_ENDINGS = (".txt", ".md")
LONGEST_SENTENCE = 60  # words


@dataclass(frozen=True, slots=True)
class DrawnPicture:
    """A picture of coloured shapes on a shaded ground, the same for the same seed."""

    seed: int
    size: tuple[int, int] = (384, 288)

    def load(self) -> Image.Image:
        """Draw it."""
        rng = np.random.default_rng([7, self.seed])
        width, height = self.size
        corners = rng.integers(30, 226, size=(2, 3)).astype(np.float64)
        shade = np.linspace(0.0, 1.0, height)[:, None, None] * np.ones((1, width, 1))
        ground = (corners[0] * (1 - shade) + corners[1] * shade).astype(np.uint8)  # (height, width, 3)
        image = Image.fromarray(ground)
        draw = ImageDraw.Draw(image)
        for _ in range(int(rng.integers(5, 12))):
            x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
            half_width, half_height = int(rng.integers(12, width // 5)), int(rng.integers(12, height // 5))
            left, top, right, bottom = x - half_width, y - half_height, x + half_width, y + half_height
            colour = tuple(rng.integers(0, 256, 3).tolist())
            shape = int(rng.integers(0, 3))
            if shape == 2:
                draw.polygon([(x, top), (right, bottom), (left, bottom)], fill=colour)
            else:
                (draw.rectangle if shape else draw.ellipse)((left, top, right, bottom), fill=colour)
        return image


@dataclass(frozen=True, slots=True)
class RenderedText:
    """A text as a picture: dark on white, with Pillow's own font."""

    text: str
    width: int = 512
    font_size: int = 18

    def load(self) -> Image.Image:
        """Draw it."""
        font = ImageFont.load_default(size=self.font_size)
        margin, pitch = self.font_size, int(self.font_size * 1.5)
        columns = max(8, int((self.width - 2 * margin) / (font.getlength("the harbour of rain") / 19)))
        lines = textwrap.wrap(self.text, columns)
        image = Image.new("RGB", (self.width, 2 * margin + pitch * len(lines)), "white")
        draw = ImageDraw.Draw(image)
        for number, line in enumerate(lines):
            draw.text((margin, margin + number * pitch), line, fill=(20, 20, 20), font=font)
        return image


@dataclass(frozen=True, slots=True)
class PastedPicture:
    """A picture pasted into a larger one, at a spot drawn by the seed.

    ``share`` is the pasted picture's longer side as a share of the host's shorter side, from 0 to 1.
    """

    host: Page
    needle: Page
    seed: int
    share: float = 0.4

    def load(self) -> Image.Image:
        """Draw it."""
        image, needle = self.host.pixels(), self.needle.pixels()
        side = max(8, int(min(image.size) * self.share))
        needle.thumbnail((side, side))
        rng = np.random.default_rng([11, self.seed])
        left = int(rng.integers(0, image.width - needle.width + 1))
        top = int(rng.integers(0, image.height - needle.height + 1))
        image.paste(needle, (left, top))
        return image


@dataclass(frozen=True, slots=True, eq=False)
class Haystack:
    """Passages and pictures to fill contexts with; ``name`` says where they come from.

    Raises:
        DataError: no passages.
    """

    passages: tuple[str, ...]
    images: tuple[Page, ...]
    name: str

    def __post_init__(self) -> None:
        if not any(passage.strip() for passage in self.passages):
            raise DataError(
                f"The haystack {self.name!r} has no text. Needles are hidden in text and pictures: add text files or "
                "PDFs with a text layer, or leave the haystack out and one is generated."
            )

    @classmethod
    def generated(cls, seed: int = 0, *, passages: int = 1200, images: int = 64) -> Haystack:
        """Plain invented prose (passages of eight sentences, some 150,000 tokens in all) and pictures of shapes."""
        rng = np.random.default_rng([3, seed])
        numbers = range(images)
        drawn = (Page(image=DrawnPicture(seed * 100_003 + one), doc_id="generated", index=one) for one in numbers)
        return cls(tuple(draw_prose(rng) for _ in range(passages)), tuple(drawn), f"generated, seed {seed}")

    @classmethod
    def from_files(cls, paths: Iterable[str | Path]) -> Haystack:
        """From PDFs (their text layers, and their pages as pictures), text files and images, or folders of these.

        Raises:
            DataError: a missing or unknown file, or no text at all.
            PageError: a PDF or image that can't be read.
        """
        passages: list[str] = []
        images: list[Page] = []
        names: list[str] = []
        for path in _files(paths):
            names.append(path.name)
            ending = path.suffix.lower()
            if ending == ".pdf":
                pages = list(iter_pdf(path))
                images += pages
                passages += [page.text or "" for page in pages]
            elif ending in TEXT_ENDINGS:
                passages += re.split(r"\n\s*\n", read_text(path, what="haystack's text"))
            else:
                images.append(Page(image=path, doc_id=path.name))
        return cls(tuple(passage for passage in passages if passage.strip()), tuple(images), ", ".join(names))


def sentences(text: str) -> list[str]:
    """A text's sentences with single spaces; what has no full stops is cut every sixty words."""
    found: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+", " ".join(text.split())):
        words = sentence.split()
        found += [" ".join(words[start : start + LONGEST_SENTENCE]) for start in range(0, len(words), LONGEST_SENTENCE)]
    return found


def _files(paths: Iterable[str | Path]) -> Iterator[Path]:
    known = (".pdf", *TEXT_ENDINGS, *IMAGE_ENDINGS)
    for path in map(Path, paths):
        if path.is_dir():
            yield from files_below(path, known)
        elif not path.is_file():
            raise DataError(f"{path}: no such file or folder. Check the path of the haystack.")
        elif path.suffix.lower() in known:
            yield path
        else:
            raise DataError(f"{path}: a haystack is made of {', '.join(known)} files.")


def picture_of(page: Page) -> Page:
    """The page's picture alone, without its text; :class:`PageError` if it has none."""
    if page.image is None:
        raise page.error(f"{page.name} has no image. Give pages that have one.")
    return page if page.text is None else Page(image=page.image, doc_id=page.doc_id, index=page.index, size=page.size)
