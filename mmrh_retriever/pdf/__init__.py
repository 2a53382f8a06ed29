"""PDF files as pages: text, layout and drawing. Nothing here knows models."""

import sys

# PyMuPDF 2 loads a layout model (50 MB) when it is imported. Nothing here uses it; who wants it can still import it.
_LAYOUT_MODEL = "pymupdf.layout"
if "pymupdf" not in sys.modules and _LAYOUT_MODEL not in sys.modules:
    sys.modules[_LAYOUT_MODEL] = None  # type: ignore[assignment]
    try:
        import pymupdf  # noqa: F401
    finally:
        del sys.modules[_LAYOUT_MODEL]

from mmrh_retriever.pdf.isolated import close_worker  # noqa: E402
from mmrh_retriever.pdf.mupdf import WorkerLimits, close_documents  # noqa: E402
from mmrh_retriever.pdf.reader import DEFAULT_MAX_PIXELS, iter_pdf, parse_page_range, read_pdf  # noqa: E402

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "WorkerLimits",
    "close_documents",
    "close_worker",
    "iter_pdf",
    "parse_page_range",
    "read_pdf",
]
