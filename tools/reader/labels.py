"""Crops of whole attention windows, with the pieces, letters and letter pairs of every visual token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pymupdf

from tools.reader.pages import Marks, ReadablePage

PATCH = 16
MERGE = 2
CELL = PATCH * MERGE  # a visual token covers CELL x CELL pixels
WINDOW_CELLS = 8

Spoiling = Callable[[np.ndarray], np.ndarray]
"""Turns a page's pixels into what a scanner or a poor copy makes of them."""


@dataclass(frozen=True, slots=True)
class Crop:
    """Pixels with labels as (cell, id) pairs; cells are numbered row by row."""

    pixels: np.ndarray  # (height, width, 3) uint8
    columns: int
    rows: int
    pieces: np.ndarray  # (labels, 2) int64
    characters: np.ndarray  # (labels, 2) int64
    pairs: np.ndarray  # (labels, 2) int64


def cell_labels(marks: Marks, zoom: float, origin: tuple[float, float], columns: int, rows: int) -> np.ndarray:
    """Pairs (cell, id), each once.

    A mark belongs to the row of cells in which the middle of its letters lies, there to
    the cell of its centre and to every cell that it fills by 40 % or that holds half of it.
    """
    left = (marks.left * zoom - origin[0]) / CELL
    right = (marks.right * zoom - origin[0]) / CELL
    row = np.floor((marks.middle * zoom - origin[1]) / CELL).astype(np.int64)
    centre = (left + right) / 2
    found = []
    for offset in range(-3, 4):
        column = np.floor(centre).astype(np.int64) + offset
        overlap = np.minimum(right, column + 1) - np.maximum(left, column)
        holds = (overlap >= 0.4) | (overlap >= 0.5 * np.maximum(right - left, 1e-6)) if offset else True
        inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows) & holds
        found.append(np.stack([row[inside] * columns + column[inside], marks.ids[inside]], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def crop(page: ReadablePage, zoom: float, origin: tuple[float, float], columns: int, rows: int) -> Crop:
    """Draw the part of the page that starts at `origin` (pixels, at this zoom)."""
    x, y = round(origin[0]), round(origin[1])
    width, height = columns * CELL, rows * CELL
    clip = pymupdf.Rect(x / zoom, y / zoom, (x + width) / zoom, (y + height) / zoom)  # in points
    pixmap = page.drawing.get_pixmap(matrix=pymupdf.Matrix(zoom, zoom), clip=clip, alpha=0, colorspace=pymupdf.csRGB)
    pixels = np.full((height, width, 3), 255, np.uint8)
    drawn = np.frombuffer(pixmap.samples, np.uint8).reshape(pixmap.height, pixmap.width, 3)
    top, start = pixmap.y - y, pixmap.x - x
    drawn = drawn[max(-top, 0) : height - top, max(-start, 0) : width - start]
    top, start = max(top, 0), max(start, 0)
    pixels[top : top + drawn.shape[0], start : start + drawn.shape[1]] = drawn
    labelled = [cell_labels(marks, zoom, (x, y), columns, rows) for marks in (page.pieces, page.characters, page.pairs)]
    return Crop(pixels, columns, rows, *labelled)


def sheet_windows(page: ReadablePage, zoom: float, shift: tuple[int, int], spoil: Spoiling | None = None) -> list[Crop]:
    """The whole page as crops of one window each; it starts `shift` pixels right of and below the first's corner."""
    side = WINDOW_CELLS * CELL
    matrix = pymupdf.Matrix(zoom, zoom)
    pixmap = page.drawing.get_pixmap(matrix=matrix, alpha=0, colorspace=pymupdf.csRGB)
    drawn = np.frombuffer(pixmap.samples, np.uint8).reshape(pixmap.height, pixmap.width, 3)
    if spoil is not None:
        drawn = spoil(drawn)
    height, width = drawn.shape[0] + shift[1], drawn.shape[1] + shift[0]
    pixels = np.pad(drawn, ((shift[1], -height % side), (shift[0], -width % side), (0, 0)), mode="edge")
    across, down = pixels.shape[1] // side, pixels.shape[0] // side
    origin = (-float(shift[0]), -float(shift[1]))
    tables = []
    for marks in (page.pieces, page.characters, page.pairs):
        found = cell_labels(marks, zoom, origin, across * WINDOW_CELLS, down * WINDOW_CELLS)
        row, column = np.divmod(found[:, 0], across * WINDOW_CELLS)
        window = row // WINDOW_CELLS * across + column // WINDOW_CELLS
        cell = row % WINDOW_CELLS * WINDOW_CELLS + column % WINDOW_CELLS
        order = np.argsort(window, kind="stable")
        table = np.stack([cell[order], found[order, 1]], axis=1)
        tables.append(np.split(table, np.searchsorted(window[order], np.arange(1, across * down))))
    tiles = pixels.reshape(down, side, across, side, 3).transpose(0, 2, 1, 3, 4).reshape(-1, side, side, 3)
    return [Crop(tile, WINDOW_CELLS, WINDOW_CELLS, *labels) for tile, *labels in zip(tiles, *tables, strict=True)]


def trim(one: Crop, columns: int, rows: int) -> Crop:
    """The window's first columns and rows: what a page's last, narrower windows are like."""
    tables = []
    for labels in (one.pieces, one.characters, one.pairs):
        row, column = np.divmod(labels[:, 0], one.columns)
        kept = (row < rows) & (column < columns)
        tables.append(np.stack([row[kept] * columns + column[kept], labels[kept, 1]], axis=1))
    return Crop(one.pixels[: rows * CELL, : columns * CELL], columns, rows, *tables)


def patches(pixels: np.ndarray) -> np.ndarray:
    """Pixels as the stock image processor gives them: white 0, black 255 / 96.

    There is one row per patch; the patches that merge into a token stand together.
    """
    height, width, _ = pixels.shape
    ink = (255.0 - pixels.astype(np.float32)) / 96.0
    grid = ink.reshape(height // CELL, MERGE, PATCH, width // CELL, MERGE, PATCH, 3)
    return np.ascontiguousarray(grid.transpose(0, 3, 1, 4, 6, 2, 5)).reshape(-1, 3 * PATCH * PATCH)
