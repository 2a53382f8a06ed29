"""MMDocIR, and data of the same form: annotations, and pages from PDFs or parquet files."""

from mmrh_retriever.evaluation.mmdocir.annotations import Document, GoldLayout, Question, read_annotations
from mmrh_retriever.evaluation.mmdocir.dataset import MMDocIR, PageReader, PdfFolder
from mmrh_retriever.evaluation.mmdocir.parquet import ParquetPages

__all__ = [
    "Document",
    "GoldLayout",
    "MMDocIR",
    "PageReader",
    "ParquetPages",
    "PdfFolder",
    "Question",
    "read_annotations",
]
