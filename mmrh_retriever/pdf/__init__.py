"""PDF files as pages: text, layout and drawing. Nothing here knows models."""

from mmrh_retriever.pdf.reader import iter_pdf, read_pdf

__all__ = ["iter_pdf", "read_pdf"]
