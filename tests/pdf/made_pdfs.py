"""PDF files made for tests, and what is expected to fail on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pymupdf
import pytest

from mmrh_retriever.errors import PageError

A4 = (595.0, 842.0)


def make_pdf(texts: Iterable[str], size: tuple[float, float] = A4) -> bytes:
    with pymupdf.open() as document:
        for text in texts:
            page = document.new_page(width=size[0], height=size[1])
            if text:
                page.insert_textbox((72, 72, size[0] - 40, size[1] - 40), text, fontsize=12)
        return bytes(document.tobytes(deflate=True))


def edited(data: bytes, change: Callable[[pymupdf.Document], None]) -> bytes:
    with pymupdf.open(stream=data) as document:
        change(document)
        return bytes(document.tobytes())


def failure(call: Callable[[], object]) -> PageError:
    with pytest.raises(PageError) as caught:
        call()
    return caught.value
