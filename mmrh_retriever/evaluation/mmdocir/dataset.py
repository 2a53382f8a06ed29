"""MMDocIR, and data of the same form: questions about long documents, with the pages and boxes that answer them.

Questions come from an annotations file (one JSON object per line and document), pages from a folder of the PDFs
or from the two official parquet files. Source and format: Dong et al. 2025, "MMDocIR: Benchmarking Multi-Modal
Retrieval for Long Documents", arXiv 2501.08828, dataset ``MMDocIR/MMDocIR_Evaluation_Dataset`` on Hugging Face.

Page ids count from 0; ``page_indices`` and ``layout_indices`` are first and last row, both included; boxes are
``[x0, y0, x1, y1]`` in the units of the ``page_size`` beside them (PDF points), origin at the top left.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from mmrh_retriever.errors import DataError
from mmrh_retriever.evaluation.mmdocir.annotations import Document, read_annotations
from mmrh_retriever.evaluation.mmdocir.parquet import ParquetPages, TextColumn
from mmrh_retriever.files import is_file, is_folder
from mmrh_retriever.pdf.reader import DEFAULT_MAX_PIXELS, read_pdf
from mmrh_retriever.types import Page


class PageReader(Protocol):
    """Where a document's pages come from."""

    def pages(self, document: Document, *, regions: bool) -> list[Page]:
        """The document's pages in order, with their layout boxes if asked for; for errors see :meth:`MMDocIR.pages`."""
        ...  # pragma: no cover


@dataclass(frozen=True, slots=True)
class PdfFolder:
    """Pages from a folder of PDFs named by ``doc_name``: a :class:`PageReader`."""

    folder: Path
    max_pixels: int = DEFAULT_MAX_PIXELS

    def pages(self, document: Document, *, regions: bool) -> list[Page]:
        """The PDF's pages; damaged parts of a file are read as far as they can be."""
        path = self.folder / document.name
        if not is_file(path):
            raise DataError(f"{path}: no such PDF. Put it there.")
        return read_pdf(path, max_pixels=self.max_pixels, layout=regions, doc_id=document.name, strict=False)


@dataclass(frozen=True, slots=True)
class MMDocIR:
    """Documents with questions, and their pages when asked for.

    ``fingerprint`` differs between two datasets: a hash over the annotations of the documents that are left.
    """

    documents: tuple[Document, ...]
    source: PageReader = field(repr=False)
    fingerprint: str

    @classmethod
    def of(cls, documents: Iterable[Document], source: PageReader) -> MMDocIR:
        """Documents with questions that were read already, and where their pages come from."""
        listed = tuple(documents)
        return cls(listed, source, _fingerprint(listed))

    @classmethod
    def from_pdfs(
        cls,
        annotations: str | Path,
        documents: str | Path,
        *,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        allow_missing: bool = False,
    ) -> MMDocIR:
        """Questions from an annotations file, pages from a folder that holds each ``doc_name``.

        ``max_pixels`` is a page's pixel budget, as for :func:`~mmrh_retriever.read_pdf`. With ``allow_missing``
        documents whose PDF is missing are kept; reading their pages then fails, and whoever measures has to count
        their questions as zero.

        Raises:
            DataError: a malformed line, or missing PDFs (all of them are listed).
        """
        listed = read_annotations(annotations)
        folder = Path(documents)
        if not is_folder(folder):
            raise DataError(f"{folder}: no such folder. Give the folder that holds the PDFs.")
        missing = [document.name for document in listed if not is_file(folder / document.name)]
        if missing and not allow_missing:
            raise DataError(
                f"{folder}: {len(missing)} of {len(listed)} PDFs are missing: {', '.join(missing)}. Put them there, or "
                "allow missing documents; their questions then count as zero."
            )
        return cls.of(listed, PdfFolder(folder, max_pixels))

    @classmethod
    def from_parquet(
        cls,
        annotations: str | Path,
        pages: str | Path,
        layouts: str | Path | None = None,
        *,
        text: TextColumn = "ocr_text",
        layout_images: bool = False,
    ) -> MMDocIR:
        """Questions from the annotations file, pages and layout boxes from the official parquet files.

        ``layouts`` is needed for layout boxes and for the pages' sizes in points. ``text`` says which text of a page
        stands for its text layer. With ``layout_images`` each box brings its own image from the layouts file.

        Raises:
            DataError: a malformed line, a missing file or column, rows beyond the file's end or of another document.
            ImportError: pyarrow is missing; it names the extra to install.
        """
        listed = read_annotations(annotations)
        source = ParquetPages(Path(pages), None if layouts is None else Path(layouts), text, layout_images)
        source.check(listed, name=str(annotations))
        return cls.of(listed, source)

    def first(self, count: int) -> MMDocIR:
        """The same data, cut to its first ``count`` documents."""
        if count < 1:
            raise DataError(f"At least one document is needed, got a limit of {count}.")
        kept = self.documents[:count]
        return replace(self, documents=kept, fingerprint=_fingerprint(kept))

    def pages(self, document: Document, *, regions: bool = False) -> list[Page]:
        """A document's pages in order, checked against the annotations.

        Raises:
            DataError: missing, fewer or more pages than the annotations say, or gold pages beyond the last.
            PageError: a page that can't be read.
        """
        pages = self.source.pages(document, regions=regions)
        if document.page_rows is not None and len(pages) != len(document.page_rows):
            raise DataError(
                f"{document.name} has {len(pages)} pages, its annotations (line {document.line}) speak of "
                f"{len(document.page_rows)}. Get the edition that was annotated."
            )
        for question in document.questions:
            if beyond := [page for page in question.pages if page >= len(pages)]:
                raise DataError(
                    f"{document.name} has {len(pages)} pages; question {question.number} of line {document.line} has "
                    f"its evidence on page ids {beyond} (from 0). Correct the annotations, or get the right edition."
                )
        return pages


def _fingerprint(documents: Iterable[Document]) -> str:
    """A hash over everything that measuring depends on."""
    digest = hashlib.sha256()
    for document in documents:
        questions = [
            (item.text, item.pages, item.types, [(gold.page, gold.box) for gold in item.layouts])
            for item in document.questions
        ]
        digest.update(json.dumps([document.name, document.domain, questions]).encode())
    return digest.hexdigest()[:16]
