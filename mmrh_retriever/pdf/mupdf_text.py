"""The text layer of a page as MuPDF reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mmrh_retriever.pdf.light_import import pymupdf
from mmrh_retriever.pdf.text import TextBlock, reading_order
from mmrh_retriever.types import Box


def text_blocks(page: pymupdf.Page) -> list[TextBlock]:
    """The text blocks of a page in reading order, in points of the displayed (rotated, cropped) page."""
    # Ligatures are expanded, what lies outside the crop box is left out.
    flags = pymupdf.TEXT_PRESERVE_WHITESPACE | pymupdf.TEXT_MEDIABOX_CLIP | pymupdf.TEXT_CID_FOR_UNKNOWN_UNICODE
    turn = page.rotation_matrix
    raw = page.get_text("dict", flags=flags)["blocks"]
    found = [block for part in raw if (block := _text_block(part["lines"], turn)) is not None]
    return [found[i] for i in reading_order(found)]


def _text_block(lines: Sequence[dict[str, Any]], turn: pymupdf.Matrix) -> TextBlock | None:
    rows: list[tuple[Box, str]] = []
    sizes: Counter[float] = Counter()
    bold = upright = 0
    for line in lines:
        text = "".join(span["text"] for span in line["spans"]).strip()
        if not text:
            continue
        for span in line["spans"]:
            length = len(span["text"].strip())
            sizes[round(span["size"], 1)] += length
            bold += length * bool(span["flags"] & pymupdf.TEXT_FONT_BOLD)
        direction = pymupdf.Point(line["dir"]) * pymupdf.Matrix(turn.a, turn.b, turn.c, turn.d, 0, 0)
        upright += len(text) * (abs(direction.x) >= abs(direction.y))
        rows.append((turned(line["bbox"], turn), text))
    if not rows:
        return None
    return TextBlock.of(
        rows,
        font_size=sizes.most_common(1)[0][0],
        bold=2 * bold > sizes.total(),
        upright=2 * upright >= sum(len(text) for _, text in rows),
    )


def turned(box: Sequence[float], turn: pymupdf.Matrix) -> Box:
    """A box of the unrotated page as it stands on the displayed one."""
    rect = (pymupdf.Rect(box) * turn).normalize()
    return rect.x0, rect.y0, rect.x1, rect.y1
