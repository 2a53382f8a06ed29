"""Text drawn as a page image, for models that read images alone."""

from __future__ import annotations

import html
import re

import pymupdf
from PIL import Image

from mmrh_retriever.pdf.mupdf import using_mupdf

WIDTH, MARGIN = 612.0, 36.0
"""Points: a Letter page's width, and the white on each side."""
DPI = 147.0
"""As pages are drawn by default; the text of 10 points is then 20 pixels high."""
LONGEST = 2.0
"""Letter pages of text that one image holds: at twice the pixels of a page the text is still 14 pixels high."""
_CSS = "* {font-family: sans-serif; font-size: 10px; line-height: 1.25; margin: 0} p {margin-bottom: 5px}"


def drawn_text(text: str) -> Image.Image | None:
    """A text as an image, dark on white, as wide as a Letter page at 147 dpi and as high as it needs.

    Lines are filled anew; blank lines end a paragraph. ``None`` if it is longer than :data:`LONGEST` pages.
    """
    readable = text.encode("utf-8", "replace").decode("utf-8")  # halves of surrogate pairs become question marks
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", readable)]
    body = "".join(f"<p>{html.escape(part)}</p>" for part in paragraphs if part)
    highest = 792.0 * LONGEST
    with using_mupdf(), pymupdf.open() as document:
        page = document.new_page(width=WIDTH, height=highest)
        spare, _ = page.insert_htmlbox((MARGIN, MARGIN, WIDTH - MARGIN, highest - MARGIN), body, css=_CSS, scale_low=1)
        if spare < 0:
            return None
        page.set_cropbox((0, 0, WIDTH, highest - spare))
        pixmap = page.get_pixmap(dpi=int(DPI), alpha=False)
        return Image.frombytes("RGB", (pixmap.width, pixmap.height), pixmap.samples)
