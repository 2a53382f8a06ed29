"""Labelled questions about any documents: a JSON lines file, and a folder of PDFs and images.

    {"document": "report.pdf", "question": "How did revenue change?", "pages": [4, 5]}

Pages count from 1, as people count them. A document is a PDF, an image, or a folder of images below the given folder.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mmrh_retriever.errors import DataError, PageError
from mmrh_retriever.evaluation.mmdocir.annotations import Document
from mmrh_retriever.evaluation.mmdocir.dataset import MMDocIR
from mmrh_retriever.files import is_file, is_folder, read_jsonl
from mmrh_retriever.images import IMAGE_ENDINGS
from mmrh_retriever.pdf.reader import DEFAULT_MAX_PIXELS, iter_pdf, read_pdf
from mmrh_retriever.types import Page

DOMAIN = "all documents"
"""The one domain of such data: macro averages are then micro averages."""


def _some_text(value: str) -> str:
    if not value.strip():
        raise ValueError("expected a text that is not empty")
    return value


def _below(value: str) -> str:
    parts = PurePath(_some_text(value))
    if parts.is_absolute() or ".." in parts.parts:
        raise ValueError("expected the name of a file or folder below the documents' folder")
    return parts.as_posix()


def _each_once(pages: list[int]) -> list[int]:
    if twice := sorted({page for page in pages if pages.count(page) > 1}):
        raise ValueError(f"pages {twice} stand there twice; expected each once")
    return pages


class _Line(BaseModel):
    """A labelled question; fields that we don't know are left alone."""

    model_config = ConfigDict(strict=True, frozen=True)

    document: Annotated[str, AfterValidator(_below)]
    question: Annotated[str, AfterValidator(_some_text)]
    pages: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1), AfterValidator(_each_once)]


@dataclass(frozen=True, slots=True)
class MixedFolder:
    """Pages from a folder of PDFs, images, and folders of images: a ``PageReader``.

    The images of a folder are its pages, in the order of their names; numbers in names count as numbers, so that
    ``page-10.png`` follows ``page-9.png``.
    """

    folder: Path
    max_pixels: int = DEFAULT_MAX_PIXELS

    def has(self, name: str) -> bool:
        """Whether the folder holds a document of this name."""
        return is_file(self.folder / name) or bool(self._images(name))

    def total(self, name: str) -> int | None:
        """How many pages a document has; ``None`` if it can't be read, which raises when its pages are asked for."""
        if images := self._images(name):
            return len(images)
        with suppress(PageError):
            return int(next(iter_pdf(self.folder / name, strict=False)).metadata["total_pages"])
        return None

    def pages(self, document: Document, *, regions: bool) -> list[Page]:
        """The document's pages; damaged parts of a PDF are read as far as they can be."""
        name = document.name
        if not self.has(name):
            raise DataError(f"{self.folder / name}: no such PDF, image or folder of images. Put it there.")
        if images := self._images(name):
            return [Page(image=image, doc_id=name, index=index) for index, image in enumerate(images)]
        return read_pdf(self.folder / name, max_pixels=self.max_pixels, layout=regions, doc_id=name, strict=False)

    def _images(self, name: str) -> list[Path]:
        path = self.folder / name
        files = sorted(path.iterdir(), key=_by_number) if is_folder(path) else [path]
        return [file for file in files if file.suffix.lower() in IMAGE_ENDINGS and is_file(file)]


def read_labelled(
    questions: str | Path, documents: str | Path, *, max_pixels: int = DEFAULT_MAX_PIXELS, allow_missing: bool = False
) -> MMDocIR:
    """Questions from a JSON lines file, one object a line, pages from a folder; ready for :func:`.evaluate`.

    Args:
        questions: lines of ``document`` (a name below ``documents``), ``question``, and ``pages``: the numbers, from 1,
            of the pages that hold the answer. Lines about a document may stand anywhere; other fields are left alone.
        documents: the folder, see :class:`MixedFolder`.
        max_pixels: a PDF page's pixel budget, as for :func:`~mmrh_retriever.read_pdf`.
        allow_missing: keep documents that are missing; their questions then count as zero.

    Raises:
        DataError: a malformed line, an unknown document, a page that a document does not have, or a question about a
            document that stands there twice; names file and line.
    """
    file, folder = Path(questions), MixedFolder(Path(documents), max_pixels)
    if not is_folder(folder.folder):
        raise DataError(f"{folder.folder}: no such folder. Give the folder that holds the documents.")
    asked: dict[str, dict[str, tuple[int, list[int]]]] = {}  # by document and question: line and pages
    for number, line in read_jsonl(file, _Line, what="labelled question"):
        where = f"{file}, line {number}"
        if line.document not in asked:
            if not allow_missing and not folder.has(line.document):
                raise DataError(
                    f"{where}: {line.document!r} is no PDF, image or folder of images in {folder.folder}. Put it "
                    "there, correct the name, or allow missing documents; their questions then count as zero."
                )
            asked[line.document] = {}
        if line.question in asked[line.document]:
            first, _ = asked[line.document][line.question]
            raise DataError(
                f"{where}: the question {line.question[:80]!r} about {line.document} stands on line {first} already. "
                "Join the two: pages takes several numbers."
            )
        asked[line.document][line.question] = number, line.pages
    if not asked:
        raise DataError(f"{file}: holds no questions. Expected one JSON object per line: document, question, pages.")
    for name, lines in asked.items():
        total = folder.total(name) if folder.has(name) else None
        for number, pages in lines.values():
            if total is not None and max(pages) > total:
                raise DataError(
                    f"{file}, line {number}: got page {max(pages)} of {name}, expected numbers from 1 to {total}, "
                    "its last page. Correct the line, or get the right edition."
                )
    return MMDocIR.of([_document(name, lines) for name, lines in asked.items()], folder)


def _document(name: str, asked: dict[str, tuple[int, list[int]]]) -> Document:
    questions = tuple({"Q": text, "page_id": tuple(page - 1 for page in pages)} for text, (_, pages) in asked.items())
    line = min(number for number, _ in asked.values())
    return Document.model_validate({"doc_name": name, "domain": DOMAIN, "line": line, "questions": questions})


def _by_number(file: Path) -> list[tuple[int, str]]:
    """A name cut into its numbers and what stands between them, for sorting."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", file.name)]
