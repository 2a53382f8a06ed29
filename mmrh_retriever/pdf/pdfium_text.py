"""The text layer of a page as PDFium reads it: characters with boxes, put together into lines and blocks."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pypdfium2 import raw

from mmrh_retriever.pdf.boxes import union
from mmrh_retriever.pdf.text import TextBlock, reading_order, without_surrogates
from mmrh_retriever.types import Box

_CELL_GAP = 1.0  # of a letter's height: characters of a row that stand further apart are cells
_SAME_LINE = 0.3  # of the lower one's height, that two characters of a line share
_PARAGRAPH = 1.5  # of a line's height, between two of a block from bottom to bottom
_HYPHENS = (0x2, 0xAD, 0xFFFE)  # what PDFium gives for a hyphen at the end of a line
_MOST_UNMAPPED = 0.5  # of the characters: a text layer with more of them that no letter is known for is none
_BOLD = 600  # a font's weight


@dataclass(frozen=True, slots=True)
class DisplayedPage:
    """How a page is shown: the ``box`` of what is shown (left, bottom, right, top), and its turn in degrees."""

    box: tuple[float, float, float, float]
    rotation: int

    def shown(self, left: float, bottom: float, right: float, top: float) -> Box | None:
        """A box on the displayed page, from its top left corner; ``None`` for one that lies off it or nowhere."""
        x0, y0, x1, y1 = self.box
        if not all(map(math.isfinite, (left, bottom, right, top))):
            return None
        if right < x0 or left > x1 or top < y0 or bottom > y1:
            return None
        if self.rotation == 90:
            return bottom - y0, left - x0, top - y0, right - x0
        if self.rotation == 180:
            return x1 - right, bottom - y0, x1 - left, top - y0
        if self.rotation == 270:
            return y1 - top, x1 - right, y1 - bottom, x1 - left
        return left - x0, y1 - top, right - x0, y1 - bottom


@dataclass(slots=True)
class _Line:
    upright: bool
    size: float
    bold: bool
    box: Box
    text: list[str] = field(default_factory=list)


def text_blocks(page: Any, displayed: DisplayedPage) -> list[TextBlock]:
    """The text blocks of a loaded page in reading order, in points of the displayed (rotated, cropped) page.

    PDFium is not thread-safe: the caller holds its lock.
    """
    text = raw.FPDFText_LoadPage(page)
    if not text:
        return []
    try:
        lines = [line for line in _lines(text, displayed) if "".join(line.text).strip()]
    finally:
        raw.FPDFText_ClosePage(text)
    found = [_block(group) for group in _groups(lines)]
    return [found[i] for i in reading_order(found)]


def _lines(text: Any, displayed: DisplayedPage) -> Iterator[_Line]:
    """Characters that follow each other in a row; cells of a table are lines of their own."""
    line: _Line | None = None
    last: Box | None = None
    for index, code, box in _characters(text, displayed):
        if box is None:  # PDFium's own spaces and line ends
            if line is not None and code == 0x20:
                line.text.append(" ")
            elif line is not None:
                yield line
                line = None
            continue
        if line is not None and last is not None and not _goes_on(line, last, box):
            yield line
            line = None
        if line is None:
            line = _begun(text, index, box, displayed)
        line.text.append("-" if code in _HYPHENS else chr(min(code, 0x10FFFF)))
        line.box = union((line.box, box))
        last = box
    if line is not None:
        yield line


def _characters(text: Any, displayed: DisplayedPage) -> Iterator[tuple[int, int, Box | None]]:
    """Index, code and displayed box of each character; no box for what PDFium put between them."""
    count = max(0, raw.FPDFText_CountChars(text))
    unmapped = [raw.FPDFText_HasUnicodeMapError(text, index) == 1 for index in range(count)]
    if sum(unmapped) > _MOST_UNMAPPED * count:
        return
    found = raw.FS_RECTF()
    for index in itertools.compress(range(count), map(operator.not_, unmapped)):
        code = raw.FPDFText_GetUnicode(text, index)
        if code in (0x0A, 0x0D) or (code == 0x20 and raw.FPDFText_IsGenerated(text, index) == 1):
            yield index, code, None
        elif (code >= 0x20 or code in _HYPHENS) and raw.FPDFText_GetLooseCharBox(text, index, found):
            box = displayed.shown(found.left, found.bottom, found.right, found.top)
            if box is not None:
                yield index, code, box


def _begun(text: Any, index: int, box: Box, displayed: DisplayedPage) -> _Line:
    angle = raw.FPDFText_GetCharAngle(text, index) + math.radians(displayed.rotation)
    upright = abs(math.cos(angle)) >= abs(math.sin(angle))
    size = float(raw.FPDFText_GetFontSize(text, index))
    return _Line(upright, size, raw.FPDFText_GetFontWeight(text, index) >= _BOLD, box)


def _goes_on(line: _Line, last: Box, box: Box) -> bool:
    """Whether a character continues a line whose last one is ``last``."""
    along, across = (0, 1) if line.upright else (1, 0)
    height = min(last[across + 2] - last[across], box[across + 2] - box[across])
    shared = min(last[across + 2], box[across + 2]) - max(last[across], box[across])
    gap = max(box[along] - last[along + 2], last[along] - box[along + 2])
    return shared >= _SAME_LINE * height and gap <= _CELL_GAP * max(height, 1.0)


def _groups(lines: Sequence[_Line]) -> Iterator[list[_Line]]:
    """Lines that stand close below or beside each other, as blocks; each line that runs up or down is its own."""
    group: list[_Line] = []
    for line in lines:
        if group and not _in_block(group[-1], line):
            yield group
            group = []
        group.append(line)
    if group:
        yield group


def _in_block(last: _Line, line: _Line) -> bool:
    if not (last.upright and line.upright):
        return False
    height = max(last.box[3] - last.box[1], line.box[3] - line.box[1])
    below = line.box[3] - last.box[3]
    if abs(below) <= 0.5 * height:
        return True
    aligned = line.box[0] < last.box[2] and last.box[0] < line.box[2]
    return aligned and 0 < below <= _PARAGRAPH * height


def _block(lines: Sequence[_Line]) -> TextBlock:
    longest = max(lines, key=lambda line: len(line.text))
    return TextBlock.of(
        [(line.box, _written(line)) for line in lines],
        font_size=longest.size,
        bold=longest.bold,
        upright=longest.upright,
    )


def _written(line: _Line) -> str:
    """A line's text; on some systems PDFium gives halves of surrogate pairs one by one."""
    joined = "".join(line.text).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return " ".join(without_surrogates(joined).split())
