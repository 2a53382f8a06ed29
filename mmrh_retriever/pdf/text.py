"""The text layer of a PDF page: its blocks, and the order in which a person reads them."""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mmrh_retriever.pdf.boxes import union
from mmrh_retriever.types import Box

_PROSE_CHARACTERS = 15  # a column of running text has lines at least this long; table columns mostly do not


@dataclass(frozen=True, slots=True)
class TextBlock:
    """A block of text of a PDF page.

    Boxes are in points on the displayed page. ``lines`` are as the file has them, so that each cell of a table
    row is one; ``text`` has one line per row of words. ``font_size`` is in points, ``upright`` is false for text
    that runs up or down the page.
    """

    box: Box
    lines: tuple[tuple[Box, str], ...]
    text: str
    font_size: float
    bold: bool
    upright: bool
    characters_per_line: float

    @classmethod
    def of(cls, lines: Sequence[tuple[Box, str]], *, font_size: float, bold: bool, upright: bool) -> TextBlock:
        """The block of some lines, of which there is at least one."""
        joined = join_rows(lines) if upright else [text for _, text in lines]
        return cls(
            box=union(box for box, _ in lines),
            lines=tuple(lines),
            text="\n".join(joined),
            font_size=font_size,
            bold=bold,
            upright=upright,
            characters_per_line=sum(map(len, joined)) / len(joined),
        )


def without_surrogates(text: str) -> str:
    """Text that can be encoded: a replacement character for each run of lone surrogates."""
    return re.sub("[\ud800-\udfff]+", "\ufffd", text)


def join_rows(lines: Sequence[tuple[Box, str]]) -> list[str]:
    """The texts of lines from top to bottom; lines beside each other (cells of a table row) become one."""
    rows: list[list[tuple[float, str]]] = []
    last: Box | None = None
    for box, text in sorted(lines, key=lambda line: line[0][1] + line[0][3]):
        if last is None or not _beside(last, box):
            rows.append([])
        rows[-1].append((box[0], text))
        last = box
    return [" ".join(text for _, text in sorted(row)) for row in rows]


def page_text(blocks: Sequence[TextBlock]) -> str:
    """The text of ``blocks`` in the order given; single lines beside each other become one."""
    text = blocks[0].text if blocks else ""
    for last, block in itertools.pairwise(blocks):
        beside = "\n" not in last.text + block.text and _beside(last.box, block.box)
        text += (" " if beside else "\n") + block.text
    return text


def _beside(one: Box, other: Box) -> bool:
    """Whether two boxes stand in one row: they share more than half of the lower one's height."""
    shared = min(one[3], other[3]) - max(one[1], other[1])
    return shared > 0.5 * min(one[3] - one[1], other[3] - other[1])


def reading_order(blocks: Sequence[TextBlock]) -> list[int]:
    """Indices of ``blocks`` in the order in which a person reads them.

    Columns of running text are read one after the other, everything else row by row. Text that runs up or down
    the page comes last.
    """
    upright = [i for i, block in enumerate(blocks) if block.upright]
    turned = [i for i, block in enumerate(blocks) if not block.upright]
    return _ordered(upright, blocks) + sorted(turned, key=lambda i: blocks[i].box[:2])


def _ordered(chosen: list[int], blocks: Sequence[TextBlock]) -> list[int]:
    if len(chosen) < 2:
        return chosen
    columns = _columns(chosen, blocks)
    if columns is not None:
        return [i for column in columns for i in _ordered(column, blocks)]
    bands = _split(chosen, blocks, axis=1)
    if len(bands) == 1:
        return sorted(chosen, key=lambda i: (blocks[i].box[1], blocks[i].box[0]))
    order: list[int] = []
    while bands:
        # As many bands as stand in the same columns are read together, not paragraph beside paragraph.
        taken = next((n for n in range(len(bands), 1, -1) if _columns([i for b in bands[:n] for i in b], blocks)), 1)
        group = [i for band in bands[:taken] for i in band]
        in_columns = taken > 1 or _columns(group, blocks)
        order += _ordered(group, blocks) if in_columns else sorted(group, key=lambda i: blocks[i].box[:2])
        bands = bands[taken:]
    return order


def _columns(chosen: Sequence[int], blocks: Sequence[TextBlock]) -> list[list[int]] | None:
    """The columns of running text into which ``chosen`` falls, or ``None`` where there are none."""
    columns = _split(chosen, blocks, axis=0)
    if len(columns) < 2:
        return None
    middle = (statistics.median_high(blocks[i].characters_per_line for i in column) for column in columns)
    return columns if min(middle) >= _PROSE_CHARACTERS else None


def _split(chosen: Sequence[int], blocks: Sequence[TextBlock], axis: int) -> list[list[int]]:
    """Groups with a clear gap between them along ``axis`` (0: side by side, 1: one below the other), in order."""
    groups: list[list[int]] = []
    end = float("-inf")
    for i in sorted(chosen, key=lambda i: blocks[i].box[axis]):
        low, high = blocks[i].box[axis], blocks[i].box[axis + 2]
        slack = 0.25 * blocks[i].font_size if axis else 0.0  # glyph boxes of neighbouring lines overlap a little
        if not groups or low >= end - slack:  # no comparison holds for the boxes of senselessly large fonts
            groups.append([])
            end = high
        groups[-1].append(i)
        end = max(end, high)
    return groups
