"""PDF files as pages: text, layout and drawing. Nothing here knows models."""

from mmrh_retriever.pdf.backends import PdfBackendName, close_documents
from mmrh_retriever.pdf.isolated import close_worker
from mmrh_retriever.pdf.pdf_file import WorkerLimits
from mmrh_retriever.pdf.reader import DEFAULT_MAX_PIXELS, iter_pdf, parse_page_range, read_pdf

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "PdfBackendName",
    "WorkerLimits",
    "close_documents",
    "close_worker",
    "iter_pdf",
    "parse_page_range",
    "read_pdf",
]
