"""PDF pages to read: typeset ones with known fonts, and free manuals. It is known where every piece of text stands."""

from __future__ import annotations

import gzip
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pymupdf
from transformers import PreTrainedTokenizerFast

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORD_REACH = 2.0  # letter sizes: a piece counts this far to its left and right inside its own word
_CHARACTER_IDS = {character: index for index, character in enumerate(CHARACTERS)}


@dataclass(frozen=True, slots=True)
class Marks:
    """Things printed on a page, in points: where each stands and its label id."""

    ids: np.ndarray  # (marks,) int64
    left: np.ndarray  # (marks,) float32
    right: np.ndarray  # (marks,) float32
    middle: np.ndarray  # (marks,) float32: height of the middle of the small letters


@dataclass(frozen=True, slots=True)
class ReadablePage:
    """A page kept as drawing instructions, with its pieces, letters and letter pairs."""

    drawing: pymupdf.DisplayList | None  # None where only the text is wanted
    width: float
    height: float
    size: float  # the usual letter size in points
    pieces: Marks
    characters: Marks
    pairs: Marks
    words: tuple[str, ...]  # in reading order
    word_marks: Marks  # ids are the words' indices


def _marks(rows: list[tuple[int, float, float, float]]) -> Marks:
    table = np.array(rows, dtype=np.float64).reshape(-1, 4)
    return Marks(table[:, 0].astype(np.int64), *(table[:, column].astype(np.float32) for column in (1, 2, 3)))


class PageReader:
    """Turns PyMuPDF pages into `ReadablePage`s; keeps the pieces of words it has met."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._known: dict[str, tuple[tuple[int, int, int], ...]] = {}

    def word_pieces(self, word: str) -> tuple[tuple[int, int, int], ...]:
        """Each piece of a word as (id, first character, one past the last)."""
        if word not in self._known:
            encoding = self._backend.encode(word, add_special_tokens=False)
            spans = zip(encoding.ids, encoding.offsets, strict=True)
            self._known[word] = tuple((piece, start, end) for piece, (start, end) in spans if end > start)
        return self._known[word]

    def read(self, page: pymupdf.Page, *, drawn: bool = True) -> ReadablePage:
        """Boxes come from the page's own text layer."""
        raw = page.get_text("rawdict", flags=pymupdf.TEXT_PRESERVE_WHITESPACE)
        pieces: list[tuple[int, float, float, float]] = []
        characters: list[tuple[int, float, float, float]] = []
        pairs: list[tuple[int, float, float, float]] = []
        words: list[str] = []
        word_marks: list[tuple[int, float, float, float]] = []
        sizes: list[float] = []
        for block in raw["blocks"]:
            for line in block.get("lines", ()):
                if abs(line["dir"][1]) > 0.01 or line["dir"][0] < 0:
                    continue
                for found, boxes, middle, size in _words_of_line(line):
                    word = found.encode("utf-8", "replace").decode()  # some text layers hold lone surrogates
                    word_marks.append((len(words), boxes[0][0], boxes[-1][1], middle))
                    words.append(word)
                    sizes.append(size)
                    for piece, start, end in self.word_pieces(word):
                        left = max(boxes[0][0], boxes[start][0] - WORD_REACH * size)
                        right = min(boxes[-1][1], boxes[min(end, len(boxes)) - 1][1] + WORD_REACH * size)
                        pieces.append((piece, left, right, middle))
                    previous = -1
                    for character, (left, right) in zip(word.lower(), boxes, strict=False):
                        index = _CHARACTER_IDS.get(character, -1)
                        if index >= 0:
                            characters.append((index, left, right, middle))
                            if previous >= 0:
                                pairs.append((previous * len(CHARACTERS) + index, left, left, middle))
                        previous = index
        size = float(np.median(sizes)) if sizes else 10.0
        rect = page.rect
        return ReadablePage(
            page.get_displaylist(annots=False) if drawn else None,
            rect.width,
            rect.height,
            size,
            _marks(pieces),
            _marks(characters),
            _marks(pairs),
            tuple(words),
            _marks(word_marks),
        )


def _words_of_line(line: dict) -> list[tuple[str, list[tuple[float, float]], float, float]]:
    found = []
    text: list[str] = []
    boxes: list[tuple[float, float]] = []
    middle = size = 0.0

    def close() -> None:
        if text:
            found.append(("".join(text), list(boxes), middle, size))
        text.clear()
        boxes.clear()

    for span in line["spans"]:
        for character in span["chars"]:
            box = character["bbox"]
            if character["c"].isspace():
                close()
                continue
            if boxes and box[0] - boxes[-1][1] > 0.25 * span["size"]:
                close()
            text.append(character["c"])
            boxes.append((box[0], box[2]))
            size = span["size"]
            middle = character["origin"][1] - 0.25 * size
    close()
    return found


@dataclass(frozen=True, slots=True)
class Typesetting:
    """How typeset pages look."""

    fonts: Sequence[str]
    sizes: tuple[float, float]
    pitch: tuple[float, float] | None = None  # in letter sizes; None: lines on the cell grid
    random_words: float = 0.0  # share of lines made of shuffled words
    colours: bool = False


def typeset(texts: Sequence[str], words: Sequence[str], how: Typesetting, rng: random.Random) -> pymupdf.Document:
    """A one-page document of 768 x 768 points filled with lines of text."""
    side = 768
    document = pymupdf.open()
    page = document.new_page(width=side, height=side)
    ink, paper = _colours(rng) if how.colours else ((0.0, 0.0, 0.0), None)
    if paper is not None:
        page.draw_rect(page.rect, color=None, fill=paper)
    writer = pymupdf.TextWriter(page.rect)
    font = pymupdf.Font(fontfile=rng.choice(how.fonts))
    size = rng.uniform(*how.sizes)
    pitch = 32.0 if how.pitch is None else size * rng.uniform(*how.pitch)
    baseline = 22.0 if how.pitch is None else size
    stream = _stream(texts, words, how.random_words, rng)
    while baseline < side - 4:
        if how.pitch is not None and rng.random() < 0.06:  # a new block: another font, size or gap
            font = pymupdf.Font(fontfile=rng.choice(how.fonts))
            size = rng.uniform(*how.sizes)
            pitch = size * rng.uniform(*how.pitch)
            baseline += pitch * rng.uniform(0.2, 1.5)
        left = rng.uniform(2, 12)
        space = font.text_length(" ", size)
        while True:
            word = next(stream)
            length = font.text_length(word, size)
            if left + length > side - 4:
                break
            writer.append((left, baseline), word, font=font, fontsize=size)
            left += length + space * (1.0 if how.pitch is None else rng.uniform(0.9, 1.3))
        baseline += pitch
    writer.write_text(page, color=ink)
    return document


def _stream(texts: Sequence[str], words: Sequence[str], share: float, rng: random.Random):  # noqa: ANN202
    while True:
        if rng.random() < share:
            for _ in range(8):
                word = words[int(len(words) * rng.random() ** 1.5)]
                draw = rng.random()
                yield (
                    word.title()
                    if draw < 0.12
                    else word.upper()
                    if draw < 0.17
                    else _number(rng)
                    if draw < 0.24
                    else word
                )
        else:
            for word in rng.choice(texts).split():
                if len(word) < 24 and word.isascii():
                    yield word


def _number(rng: random.Random) -> str:
    value = rng.choice((rng.randint(0, 99), rng.randint(1900, 2030), rng.randint(0, 999_999)))
    return rng.choice((f"{value}", f"{value:,}", f"{value}%", f"${value:,}", f"{value / 10:.1f}", f"({value})"))


def _colours(rng: random.Random) -> tuple[tuple[float, ...], tuple[float, ...] | None]:
    draw = rng.random()
    if draw < 0.5:
        return (0.0, 0.0, 0.0), None
    if draw < 0.7:
        return (rng.uniform(0.1, 0.5),) * 3, None
    if draw < 0.85:
        return tuple(rng.uniform(0, 0.35) for _ in range(3)), tuple(rng.uniform(0.8, 1) for _ in range(3))
    return tuple(rng.uniform(0.85, 1) for _ in range(3)), tuple(rng.uniform(0, 0.45) for _ in range(3))


def open_pdf(path: Path) -> pymupdf.Document:
    """A PDF, gzipped or not."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return pymupdf.open(stream=data, filetype="pdf")
