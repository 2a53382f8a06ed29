"""Lines of text written on a page that PDFium makes and draws."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image
from pypdfium2 import raw

from mmrh_retriever.pdf.pdfium import drawn, using_pdfium

_FONT = b"Helvetica"  # one of the fourteen that PDFium brings


class Letters:
    """PDFium's own font in one size, in points, for one page."""

    def __init__(self, document: Any, font: Any, size: float) -> None:
        self._document = document
        self._font = font
        self._size = size
        self._widths: dict[str, float] = {}

    def width(self, text: str) -> float:
        """How long a text is, in points."""
        return sum(map(self._width, text))

    def filled(self, words: Sequence[str], width: float) -> Iterator[str]:
        """Words in lines of at most ``width`` points; longer words are cut."""
        line = ""
        for word in words:
            if line and self.width(f"{line} {word}") > width:
                yield line
                line = ""
            line = f"{line} {word}" if line else word
            while self.width(line) > width:
                fits = next(length for length in range(len(line) - 1, 0, -1) if self.width(line[:length]) <= width)
                yield line[:fits]
                line = line[fits:]
        if line:
            yield line

    def drawn(
        self, lines: Sequence[tuple[float, str]], *, left: float, size: tuple[float, float], zoom: float
    ) -> Image.Image:
        """The page as an RGB image, ``zoom`` pixels to a point, with each line's bottom so far below its top."""
        page = raw.FPDFPage_New(self._document, 0, *size)
        try:
            for bottom, line in lines:
                written = raw.FPDFPageObj_CreateTextObj(self._document, self._font, self._size)
                text = ctypes.create_string_buffer(line.encode("utf-16-le") + b"\0\0")
                raw.FPDFText_SetText(written, ctypes.cast(text, ctypes.POINTER(ctypes.c_ushort)))
                raw.FPDFPageObj_Transform(written, 1, 0, 0, 1, left, size[1] - bottom)
                raw.FPDFPage_InsertObject(page, written)
            return drawn(page, round(size[0] * zoom), round(size[1] * zoom))
        finally:
            raw.FPDF_ClosePage(page)

    def _width(self, letter: str) -> float:
        if letter not in self._widths:
            found = ctypes.c_float()
            raw.FPDFFont_GetGlyphWidth(self._font, ord(letter), self._size, found)
            self._widths[letter] = found.value
        return self._widths[letter]


@contextlib.contextmanager
def letters(size: float) -> Iterator[Letters]:
    """The font in a size, in points, with PDFium to ourselves."""
    with using_pdfium():
        document = raw.FPDF_CreateNewDocument()
        try:
            font = raw.FPDFText_LoadStandardFont(document, _FONT)
            try:
                yield Letters(document, font, size)
            finally:
                raw.FPDFFont_Close(font)
        finally:
            raw.FPDF_CloseDocument(document)
