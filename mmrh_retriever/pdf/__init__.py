"""PDF files as pages: text, layout and drawing. Nothing here knows models."""

from mmrh_retriever.pdf.mupdf import close_documents
from mmrh_retriever.pdf.reader import DEFAULT_MAX_PIXELS, iter_pdf, parse_page_range, read_pdf

__all__ = ["DEFAULT_MAX_PIXELS", "close_documents", "iter_pdf", "parse_page_range", "read_pdf"]
