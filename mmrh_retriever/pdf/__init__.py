"""PDF files as pages: text, layout and drawing. Nothing here knows models."""

from mmrh_retriever.pdf import light_import  # noqa: F401
from mmrh_retriever.pdf.isolated import close_worker
from mmrh_retriever.pdf.mupdf import WorkerLimits, close_documents
from mmrh_retriever.pdf.reader import DEFAULT_MAX_PIXELS, iter_pdf, parse_page_range, read_pdf

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "WorkerLimits",
    "close_documents",
    "close_worker",
    "iter_pdf",
    "parse_page_range",
    "read_pdf",
]
