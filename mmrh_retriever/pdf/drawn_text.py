"""Text drawn as a page image, for models that read images alone."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from PIL import Image

from mmrh_retriever.errors import PageError
from mmrh_retriever.pdf.backends import choose_backend

WIDTH, MARGIN = 612.0, 36.0
"""Points: a Letter page's width, and the white on each side."""
DPI = 147.0
"""As pages are drawn by default; the text of 10 points is then 20 pixels high."""
LONGEST = 2.0
"""Letter pages of text that one image holds: at twice the pixels of a page the text is still 14 pixels high."""
_SIZE, _LINE, _GAP, _TOP = 10.0, 12.5, 5.0, 7.0
"""Points: letters, lines, the white before and behind a paragraph, and what MuPDF leaves above the first line."""
_HIGHEST = 792.0 * LONGEST
MOST_LETTERS = 40_000
"""More never fit: a line of the narrowest has 243, and there are 120 lines. MuPDF takes quadratic time for some."""
_LETTERS = f"font-family: sans-serif; font-size: {_SIZE:g}px; line-height: {_LINE / _SIZE}; margin: 0"
_CSS = f"* {{{_LETTERS}}} p {{margin-bottom: {_GAP:g}px}}"
LETTERS = "cp1252"
"""The encoding of what PDFium's own fonts can write."""
_MOST_LOST = 0.1  # of a text's letters, that they may lack


def drawn_text(text: str) -> Image.Image | None:
    """A text as an image, dark on white, as wide as a Letter page at 147 dpi and as high as it needs.

    Lines are filled anew; blank lines end a paragraph. ``None`` if it is longer than :data:`LONGEST` pages. Without
    PyMuPDF it is drawn in PDFium's own font, which has Western Latin letters alone.

    Raises:
        PageError: a text in another script, without PyMuPDF.
    """
    readable = text.encode("utf-8", "replace").decode("utf-8")  # halves of surrogate pairs become question marks
    paragraphs = [joined for part in re.split(r"\n\s*\n", readable) if (joined := " ".join(part.split()))]
    if sum(map(len, paragraphs)) > MOST_LETTERS:
        return None
    return _by_mupdf(paragraphs) if choose_backend("auto") == "pymupdf" else _by_pdfium(paragraphs)


def _by_mupdf(paragraphs: Sequence[str]) -> Image.Image | None:
    from mmrh_retriever.pdf.light_import import pymupdf
    from mmrh_retriever.pdf.mupdf import using_mupdf

    body = "".join(f"<p>{html.escape(part)}</p>" for part in paragraphs)
    with using_mupdf(), pymupdf.open() as document:
        page = document.new_page(width=WIDTH, height=_HIGHEST)
        spare, _ = page.insert_htmlbox((MARGIN, MARGIN, WIDTH - MARGIN, _HIGHEST - MARGIN), body, css=_CSS, scale_low=1)
        if spare < 0:
            return None
        page.set_cropbox((0, 0, WIDTH, _HIGHEST - spare))
        pixmap = page.get_pixmap(dpi=int(DPI), alpha=False)
        return Image.frombytes("RGB", (pixmap.width, pixmap.height), pixmap.samples)


def _by_pdfium(paragraphs: Sequence[str]) -> Image.Image | None:
    from mmrh_retriever.pdf import pdfium_writing

    lines: list[tuple[float, str]] = []  # where they stand below the page's top, in points
    y = MARGIN + _TOP
    with pdfium_writing.letters(_SIZE) as font:
        for part in map(_latin, paragraphs):
            for line in font.filled(part.split(" "), WIDTH - 2 * MARGIN):
                y += _LINE
                if y > _HIGHEST - MARGIN:
                    return None
                lines.append((y, line))
            y += 2 * _GAP
        return font.drawn(lines, left=MARGIN, size=(WIDTH, y - _GAP + MARGIN), zoom=DPI / 72)


def _latin(text: str) -> str:
    """A text in the letters that PDFium's own fonts have, a question mark for each other one."""
    written = text.encode(LETTERS, "replace").decode(LETTERS)
    lost = written.count("?") - text.count("?")
    if lost > _MOST_LOST * len(text):
        raise PageError(
            f"A text can't be drawn as an image: PDFium's fonts lack {lost} of its {len(text)} letters, which are not "
            "Latin. Install PyMuPDF, which has fonts for other scripts (pip install pymupdf), or give the page's image."
        )
    return written
