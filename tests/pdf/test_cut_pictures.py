"""Pictures in a PDF that end early: strict reading refuses their pages, each time that they are drawn."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pymupdf
import pytest
from PIL import Image

from mmrh_retriever.pdf.reader import read_pdf
from tests.pdf.made_pdfs import failure

pytestmark = pytest.mark.usefixtures("backend")  # each library in its turn


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (25, 20, 3), dtype=np.uint8)).resize((400, 500))
RAW = PICTURE.tobytes()


def jpeg() -> bytes:
    stream = io.BytesIO()
    PICTURE.save(stream, "JPEG")
    return stream.getvalue()


def pdf_of(stream: bytes, kind: str, height: int = 500) -> bytes:
    """Two pages that show one picture, whose stream has this filter."""
    with pymupdf.open() as document:
        picture, content = document.get_new_xref(), document.get_new_xref()
        header = "/Type/XObject/Subtype/Image/ColorSpace/DeviceRGB/BitsPerComponent 8"
        document.update_object(picture, f"<<{header}/Width 400/Height {height}>>")
        document.update_stream(picture, stream, compress=False)
        if kind != "none":
            document.xref_set_key(picture, "Filter", kind)
        document.update_object(content, "<<>>")
        document.update_stream(content, b"q 400 0 0 500 0 0 cm /I Do Q")
        for _ in range(2):
            page = document.new_page(width=400, height=500)
            document.xref_set_key(page.xref, "Contents", f"{content} 0 R")
            document.xref_set_key(page.xref, "Resources", f"<</XObject<</I {picture} 0 R>>>>")
        return bytes(document.tobytes())


CUT = {
    "raw": pdf_of(RAW[: len(RAW) // 4], "none"),
    "packed": pdf_of(zlib.compress(RAW[: len(RAW) // 4]), "/FlateDecode"),
    "packed and cut": pdf_of(zlib.compress(RAW)[:5000], "/FlateDecode"),
    "JPEG": pdf_of(jpeg()[:3000], "/DCTDecode"),
    "JPEG, packed": pdf_of(zlib.compress(jpeg()[:3000]), "[/FlateDecode/DCTDecode]"),
    "JPEG of fewer rows": pdf_of(jpeg(), "/DCTDecode", height=2000),
}


@pytest.mark.parametrize("kind", CUT)
def test_a_cut_picture_is_refused_each_time(kind: str) -> None:
    pages = read_pdf(CUT[kind])
    for page in (pages[0], pages[0], pages[1]):  # the second and third find the picture decoded already
        error = failure(page.pixels)
        assert error.page == page.index
        assert "strict=False" in str(error)


@pytest.mark.parametrize("kind", CUT)
def test_layout_sees_a_cut_picture(kind: str) -> None:
    assert "damaged" in str(failure(lambda: read_pdf(CUT[kind], layout=True, backend="pymupdf")))


@pytest.mark.parametrize("kind", CUT)
def test_the_rest_of_a_cut_picture_is_shown_when_asked_for(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cut.pdf"
    path.write_bytes(CUT[kind])
    assert read_pdf(path, strict=False)[0].pixels().width > 0
    assert "Page 1 of cut.pdf" in caplog.text


@pytest.mark.parametrize(
    "data", [pdf_of(RAW, "none"), pdf_of(zlib.compress(RAW), "/FlateDecode"), pdf_of(jpeg(), "/DCTDecode")]
)
def test_whole_pictures_are_drawn(data: bytes, backend: str) -> None:
    for page in read_pdf(data, layout=backend == "pymupdf"):
        assert np.asarray(page.pixels().convert("L"))[-50:].std() > 20


def test_pdfium_does_not_leave_out_a_picture_without_a_word(backend: str) -> None:
    data = pdf_of(RAW, "null")  # a filter that PDFium takes for an unknown one
    if backend == "pdfium":
        assert "cannot decode a picture of 400 x 500 pixels" in str(failure(read_pdf(data)[0].pixels))
    else:
        assert np.asarray(read_pdf(data)[0].pixels().convert("L")).std() > 20
