"""PDF files as pages: text, layout and drawing. Nothing here knows models."""

import sys

# PyMuPDF 2 loads a layout model (onnxruntime, 80 MB) when it is imported. Nothing here uses it; who wants it imports it.
_LAYOUT_MODEL = "pymupdf.layout"
if "pymupdf" not in sys.modules and _LAYOUT_MODEL not in sys.modules:
    sys.modules[_LAYOUT_MODEL] = None  # type: ignore[assignment]
    try:
        import pymupdf as pymupdf
    finally:
        del sys.modules[_LAYOUT_MODEL]

from mmrh_retriever.pdf.mupdf import close_documents
from mmrh_retriever.pdf.reader import DEFAULT_MAX_PIXELS, iter_pdf, parse_page_range, read_pdf

__all__ = ["DEFAULT_MAX_PIXELS", "close_documents", "iter_pdf", "parse_page_range", "read_pdf"]
