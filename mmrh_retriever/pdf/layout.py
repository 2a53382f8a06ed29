"""Where things stand on a page: text, titles, tables, images and figures, each once, in reading order.

A page with a text layer is divided by its structure (:func:`layout_regions`), a page that is only a picture by
its ink (:func:`image_regions`).
"""

from __future__ import annotations

import inspect
import itertools
import math
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from mmrh_retriever.pdf.boxes import area, clip, clusters, extents, grown, inside, label, union, without_nested
from mmrh_retriever.pdf.light_import import pymupdf
from mmrh_retriever.pdf.mupdf_text import turned
from mmrh_retriever.pdf.scans import ink_of, inked_boxes, spread
from mmrh_retriever.pdf.text import TextBlock, join_rows, page_text, reading_order
from mmrh_retriever.types import Box, Region

_SCAN_CHARACTERS = 30  # a page with less text than this, and with a picture over half of it, is a scan
_BACKGROUND = 0.8  # of the page: what covers more is its background, not a figure on it
_PANEL_PROSE = 0.25  # of a drawn box: with running text over more, it is a frame around text, not a figure
_INSIDE = 0.7  # of a block: with more than this in another box, it belongs to that box
_NEAR = 8.0  # points between two drawn things of one figure
_PANEL_ITEMS = 6  # a box of at most so many strokes, with text over _PANEL_TEXT of it, is a text
_PANEL_TEXT = 0.08
_LABEL_DISTANCE = 14.0  # points between a chart and the marks of its axes
_SMALLEST_FIGURE = 36.0  # points: lower or narrower drawings are bullets, rules and icons
_MOST_STROKES = 15  # drawn things per cell of a table; with more it is a map or a chart
_CELL_GAP = 90.0  # points between two cells of a row without lines
_MOST_DRAWINGS = 8_000  # per page; with more, ruled tables are not looked for (the time grows with the square)
_TABLE_OPTIONS = (
    {"use_layout": False} if "use_layout" in inspect.signature(pymupdf.table.find_tables).parameters else {}
)


Blocks = Sequence[TextBlock]
BoxList = Sequence[Box]
Size = tuple[float, float]


@dataclass(slots=True)
class _Found:
    box: Box
    kind: str
    blocks: list[TextBlock] = field(default_factory=list)


def layout_regions(page: pymupdf.Page, blocks: Blocks) -> tuple[Region, ...]:
    """The layout of a PDF page whose text blocks are known.

    Boxes are in points of the displayed (rotated, cropped) page and lie within it. Kinds are ``text``,
    ``title``, ``table``, ``image`` and ``figure``. A region's ``text`` is the part of the text layer inside it.
    MuPDF is not thread-safe: the caller holds its lock.
    """
    size = (float(page.rect.width), float(page.rect.height))
    images, drawings = _drawn(page, size)
    characters = sum(len(block.text) for block in blocks)
    covered = max((area(box) for box in images), default=0.0) / (size[0] * size[1])
    if characters == 0 or (characters < _SCAN_CHARACTERS and covered > 0.5):
        return image_regions(_picture(page), size=size)
    cells = _ruled_tables(page, blocks, size) if len(drawings) <= _MOST_DRAWINGS else {}
    cells |= _aligned_tables(blocks, list(cells))
    tables = without_nested(list(cells))
    figures = _figures(images, drawings, blocks, tables, size)
    if any(area(box) >= _BACKGROUND * size[0] * size[1] for box in images):
        figures += _pictures_in_background(page, blocks, [*tables, *(figure.box for figure in figures)], size)
    found = figures + [
        _Found(box, "figure" if _is_picture(box, cells[box], images, drawings) else "table") for box in tables
    ]
    rest: list[TextBlock] = []
    sizes: Counter[float] = Counter()
    for block in blocks:
        owner = next((item for item in found if inside(block.box, item.box) > _INSIDE), None)
        (rest if owner is None else owner.blocks).append(block)
        sizes[block.font_size] += len(block.text)
    body = sizes.most_common(1)[0][0]  # most of the page's text has this size
    for group in _paragraphs([part for block in rest for part in _split_at_gaps(block)]):
        kind = "title" if _is_title(group, body) else "text"
        found.append(_Found(union(block.box for block in group), kind, list(group)))
    return _as_regions(found, size)


def image_regions(image: Image.Image, *, size: Size | None = None) -> tuple[Region, ...]:
    """The layout of a page that is only a picture, from its ink: regions in reading order and without text.

    ``size`` is the page's width and height in the units in which the boxes are wanted, pixels by default.
    """
    size = size or (float(image.width), float(image.height))
    return _as_regions([_Found(box, kind) for box, kind in inked_boxes(image, size)], size)


def _as_regions(found: Sequence[_Found], size: Size) -> tuple[Region, ...]:
    boxes = [(clip(item.box, size), item) for item in found]
    kept = [(box, item) for box, item in boxes if box and min(box[2] - box[0], box[3] - box[1]) >= 3.0]
    stand_ins = [TextBlock(box, (), "", 8.0, bold=False, upright=True, characters_per_line=99.0) for box, _ in kept]
    ordered = [kept[i] for i in reading_order(stand_ins)]
    return tuple(Region(box, item.kind, page_text(item.blocks) or None) for box, item in ordered)


# Text


def _is_title(group: Blocks, body: float) -> bool:
    text = " ".join(block.text for block in group)
    letters = sum(character.isalpha() for character in text)
    if not 3 <= letters <= 150 or text.count("\n") > 2:
        return False
    size = max(block.font_size for block in group)
    return size >= 1.18 * body or (size >= 0.98 * body and all(block.bold for block in group) and len(text) < 100)


def _split_at_gaps(block: TextBlock) -> list[TextBlock]:
    """The parts of a block that is cut where two of its lines stand further apart than the others do."""
    if not block.upright or len(block.lines) < 3:
        return [block]
    rows = [union(row) for row in _lanes([box for box, _ in block.lines], axis=1)]
    gaps = [below[1] - above[3] for above, below in itertools.pairwise(rows)]
    if not gaps:
        return [block]
    limit = statistics.median_low(gaps) + 0.4 * block.font_size
    cuts = [below[1] for gap, below in zip(gaps, rows[1:], strict=True) if gap > limit]
    parts: list[list[tuple[Box, str]]] = [[] for _ in range(len(cuts) + 1)]
    for box, text in block.lines:
        parts[sum((box[1] + box[3]) / 2 > cut for cut in cuts)].append((box, text))
    return [
        replace(block, box=union(box for box, _ in part), lines=tuple(part), text="\n".join(join_rows(part)))
        for part in parts
        if part
    ]


def _paragraphs(blocks: Blocks) -> list[list[TextBlock]]:
    """Blocks in reading order, joined where one continues the other: same look, same column, no gap."""
    groups: list[list[TextBlock]] = []
    for block in blocks:
        if groups and _goes_on(groups[-1][-1], block):
            groups[-1].append(block)
        else:
            groups.append([block])
    return groups


def _goes_on(last: TextBlock, block: TextBlock) -> bool:
    if last.bold != block.bold or abs(last.font_size - block.font_size) > 0.5 or last.upright != block.upright:
        return False
    gap = block.box[1] - last.box[3]
    shared = min(last.box[2], block.box[2]) - max(last.box[0], block.box[0])
    narrower = min(last.box[2] - last.box[0], block.box[2] - block.box[0])
    return -0.5 * block.font_size < gap < 0.6 * block.font_size and shared > 0.5 * narrower


# Tables


def _ruled_tables(page: pymupdf.Page, blocks: Blocks, size: Size) -> dict[Box, int]:
    """Tables with drawn lines, as MuPDF finds them, without mere frames; each with its number of cells."""
    if hasattr(pymupdf, "no_recommend_layout"):
        pymupdf.no_recommend_layout()  # or an advertisement is printed
    turn, rotation = pymupdf.Matrix(page.rotation_matrix), page.rotation
    lines = np.asarray([box for block in blocks for box, _ in block.lines])  # (lines, 4)
    centres = (lines[:, :2] + lines[:, 2:]) / 2
    tables: dict[Box, int] = {}
    page.set_rotation(0)  # MuPDF's own way with turned pages rewrites their content
    try:
        for table in page.find_tables(**_TABLE_OPTIONS).tables:
            box = clip(turned(table.bbox, turn), size)
            if box is None or table.row_count < 2 or table.col_count < 2 or area(box) > 0.95 * size[0] * size[1]:
                continue
            cells = np.asarray([turned(cell, turn) for cell in table.cells if cell is not None])  # (cells, 4)
            within = ((centres[:, None] >= cells[None, :, :2]) & (centres[:, None] <= cells[None, :, 2:])).all(-1)
            if within.any(0).mean() >= 0.4 and within.any(0).sum() >= 4:
                tables[box] = len(cells)
    finally:
        page.set_rotation(rotation)
    return tables


def _is_picture(box: Box, cells: int, images: BoxList, drawings: BoxList) -> bool:
    """Whether so much is drawn in what looks like a table that it must be a map or a chart."""
    pictured = sum(area(image) for image in images if inside(image, box) > 0.5)
    strokes = sum(inside(drawing, box) > 0.5 for drawing in drawings)
    return pictured > 0.3 * area(box) or strokes > _MOST_STROKES * cells


def _aligned_tables(blocks: Blocks, known: BoxList) -> dict[Box, int]:
    """Tables without drawn lines: short texts that stand in rows and columns; each with its number of cells."""
    cells = [
        (box, re.search(r"\d", text) is not None)
        for block in blocks
        if block.upright and not any(inside(block.box, box) > 0.5 for box in known)
        for box, text in block.lines
        if len(text) <= 40
    ]
    tables: dict[Box, int] = {}
    for group in clusters([(x0 - _CELL_GAP / 2, y0, x1 + _CELL_GAP / 2, y1) for (x0, y0, x1, y1), _ in cells], 10.0):
        members = [cells[i][0] for i in group]
        figures = sum(cells[i][1] for i in group) / len(group)
        rows = _lanes(members, axis=1)
        columns = _lanes([cell for row in rows if len(row) > 1 for cell in row], axis=0)
        wide = [row for row in rows if len(row) >= max(2, min(3, len(columns)))]
        filled = sum(map(len, rows)) / max(1, len(rows) * len(columns))
        shaped = len(wide) >= 3 and len(wide) >= 0.5 * len(rows) and filled >= 0.5
        if shaped and len(columns) >= 2 and (figures >= 0.25 or len(columns) >= 4):
            tables[union(members)] = len(members)
    return tables


def _lanes(boxes: BoxList, axis: int) -> list[list[Box]]:
    """Boxes grouped into rows (``axis`` 1) or columns (``axis`` 0) that do not overlap each other."""
    lanes: list[list[Box]] = []
    end = -math.inf
    for box in sorted(boxes, key=lambda box: box[axis]):
        if box[axis] > end - 0.35 * (box[axis + 2] - box[axis]):
            lanes.append([])
            end = -math.inf
        lanes[-1].append(box)
        end = max(end, box[axis + 2])
    return lanes


# Figures


def _drawn(page: pymupdf.Page, size: Size) -> tuple[list[Box], list[Box]]:
    """Boxes of the images and of the vector drawings on the page."""
    turn = pymupdf.Matrix(page.rotation_matrix)
    images: list[Box] = []
    drawings: list[Box] = []
    for kind, rect in page.get_bboxlog():
        target = images if "image" in kind else drawings if "path" in kind or "shade" in kind else None
        if target is not None and (box := clip(grown(turned(rect, turn), 0.1), size)) is not None:
            target.append(box)
    return images, drawings


def _figures(images: BoxList, drawings: BoxList, blocks: Blocks, tables: BoxList, size: Size) -> list[_Found]:
    whole = size[0] * size[1]
    items = [
        box
        for box in (*images, *drawings)
        if area(box) < _BACKGROUND * whole and not any(inside(box, table) > 0.5 for table in tables)
    ]
    pictures = set(images)
    figures = []
    for members in _drawn_groups(items, whole):
        box = union(members)
        if min(box[2] - box[0], box[3] - box[1]) < _SMALLEST_FIGURE:
            continue
        within = [block for block in blocks if inside(block.box, box) > _INSIDE]
        prose = sum(area(block.box) for block in within if _is_prose(block))
        if prose > _PANEL_PROSE * area(box) or (prose and area(box) > _BACKGROUND * whole):
            continue  # a frame or background of running text
        shown = sum(area(member) for member in members if member in pictures)
        written = sum(area(block.box) for block in within)
        panel = not shown and len(members) <= _PANEL_ITEMS and area(box) < 0.5 * whole
        if shown > 0.5 * area(box):
            figures.append(_Found(box, "image"))
        elif panel and written > _PANEL_TEXT * area(box):
            figures.append(_Found(box, "text"))
        else:
            figures.append(_Found(_with_labels(box, blocks), "figure"))
    return _outermost(figures)


def _outermost(found: Sequence[_Found]) -> list[_Found]:
    kept = set(without_nested([item.box for item in found]))
    return [item for item in found if item.box in kept]


def _drawn_groups(items: BoxList, whole: float) -> list[list[Box]]:
    """Groups of drawn things that stand near each other; backgrounds of most of the page do not join others."""
    groups = []
    for group in clusters(items, _NEAR):
        members = [items[i] for i in group]
        smaller = [member for member in members if area(member) < 0.25 * whole]
        if area(union(members)) > 0.5 * whole:
            apart = smaller if len(smaller) < len(members) else members
            groups += [[apart[i] for i in part] for part in clusters(apart, 2.0)]
        else:
            groups.append(members)
    return groups


def _is_prose(block: TextBlock) -> bool:
    """Whether a block is running text, not a label or the cells of a row."""
    lines = len(block.lines)
    return len(block.text) > min(25 * lines, max(80, 15 * lines))


def _with_labels(box: Box, blocks: Blocks) -> Box:
    """A figure's box, widened to the short texts right beside it, such as marks of an axis and names of bars."""
    for _ in range(2):
        near = grown(box, _LABEL_DISTANCE)
        labels = [b.box for b in blocks if len(b.text) <= 40 and not _is_prose(b) and inside(b.box, near) > 0.5]
        box = union([box, *labels])
    return box


# Pictures of pages


def _picture(page: pymupdf.Page) -> Image.Image:
    zoom = min(1.0, 1000.0 / max(page.rect.width, page.rect.height))
    drawn = page.get_pixmap(matrix=pymupdf.Matrix(zoom, zoom), colorspace=pymupdf.csGRAY, alpha=False)
    return Image.frombytes("L", (drawn.width, drawn.height), drawn.samples)


def _pictures_in_background(page: pymupdf.Page, blocks: Blocks, known: BoxList, size: Size) -> list[_Found]:
    """Pictures within an image under the whole page, apart from what is known to stand on it."""
    picture = _picture(page)
    scale = (picture.width / size[0], picture.height / size[1])
    ink = ink_of(picture)
    for box in (*known, *(block.box for block in blocks)):
        x0, y0, x1, y1 = grown(box, 3.0)
        left, top = max(0, int(x0 * scale[0])), max(0, int(y0 * scale[1]))
        ink[top : int(y1 * scale[1]) + 1, left : int(x1 * scale[0]) + 1] = False
    found = []
    for box in extents(label(spread(ink, right=12, down=12))):
        there = (box[0] / scale[0], box[1] / scale[1], box[2] / scale[0], box[3] / scale[1])
        prose = any(inside(block.box, there) > _INSIDE and _is_prose(block) for block in blocks)
        if min(there[2] - there[0], there[3] - there[1]) >= _SMALLEST_FIGURE and not prose:
            found.append(_Found(there, "image"))
    return _outermost([item for item in found if area(item.box) < _BACKGROUND * size[0] * size[1]])
