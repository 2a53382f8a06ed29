"""MuPDF behind one lock: documents, pages, pixels, and its messages as errors.

MuPDF is not thread-safe, so whoever uses a page holds the lock (:func:`open_page`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from PIL import Image

from mmrh_retriever.errors import PageError
from mmrh_retriever.pdf.damage import means_damage
from mmrh_retriever.pdf.labels import read_labels
from mmrh_retriever.pdf.layout import layout_regions
from mmrh_retriever.pdf.light_import import pymupdf
from mmrh_retriever.pdf.mupdf_text import text_blocks
from mmrh_retriever.pdf.open_documents import OpenDocuments
from mmrh_retriever.pdf.pages import PageContent, check_size
from mmrh_retriever.pdf.pdf_file import PdfFile, check_pages, check_password
from mmrh_retriever.pdf.text import page_text, without_surrogates

READER = f"PyMuPDF {pymupdf.VersionBind}"
FINDS_LAYOUT = True

_MUPDF_ERRORS = (pymupdf.mupdf.FzErrorBase, RuntimeError, ValueError, AssertionError, IndexError, TypeError)
_SHOWN_MESSAGES = 20


class MuPdf:
    """An :class:`~mmrh_retriever.pdf.pages.OpenPdf` that MuPDF reads in this process.

    Raises:
        PageError: the file can't be opened as a PDF.
    """

    def __init__(self, file: PdfFile) -> None:
        self.file = file
        with open_document(file) as document:
            self.total = int(document.page_count)
            self.title = without_surrogates((document.metadata or {}).get("title") or "")
            self._labels = read_labels(document)

    def read(self, index: int, *, layout: bool) -> PageContent:
        """The content of the page at ``index``, with its regions if ``layout`` is set.

        Raises:
            PageError: a page that is damaged, or that is too small or too large.
        """
        with open_page(self.file, index) as (page, warnings):
            size = (float(page.rect.width), float(page.rect.height))
            check_size(size, _units(page), index, self.file)
            blocks = text_blocks(page)
            regions = layout_regions(page, blocks) if layout else ()
            rotation = int(page.rotation)
        return PageContent(size, page_text(blocks), self._labels.label(index), rotation, regions, warnings)


def open_pdf(file: PdfFile) -> MuPdf:
    """Open a PDF.

    Raises:
        PageError: the file can't be opened as a PDF.
    """
    return MuPdf(file)


def draw_page(file: PdfFile, index: int, width: int, height: int) -> tuple[Image.Image, list[str]]:
    """The page at ``index`` as an RGB image of ``width`` x ``height`` pixels, and MuPDF's messages about it."""
    with open_page(file, index) as (page, warnings):
        zoom = pymupdf.Matrix(width / page.rect.width, height / page.rect.height)
        drawn = page.get_pixmap(matrix=zoom, colorspace=pymupdf.csRGB, alpha=False)
        image = Image.frombytes("RGB", (drawn.width, drawn.height), drawn.samples)
    return image, warnings


def close_documents() -> None:
    """Close the few documents that are kept open. Pages stay usable: they open their file again."""
    with using_mupdf():
        _OPEN.close_all()
        pymupdf.TOOLS.store_shrink(100)


def _units(page: pymupdf.Page) -> float:
    """A page's longer side, before UserUnit: what is displayed is what both boxes share."""
    return float(max(min(page.cropbox.width, page.mediabox.width), min(page.cropbox.height, page.mediabox.height)))


# Open documents and pages


def using_mupdf() -> contextlib.AbstractContextManager[object]:
    """The lock that whoever uses MuPDF holds."""
    return _OPEN.lock()


@contextlib.contextmanager
def open_document(file: PdfFile, page: int | None = None) -> Iterator[pymupdf.Document]:
    """The open document, with MuPDF to ourselves and its messages kept off the terminal; for ``page``, if given."""
    with using_mupdf():
        tools = pymupdf.TOOLS
        shown = tools.mupdf_display_errors(), tools.mupdf_display_warnings()
        tools.mupdf_display_errors(False)
        tools.mupdf_display_warnings(False)
        try:
            document = _OPEN.of(file, page)
            with _page_errors(file, "Download or save it again.", page):
                yield document
        finally:
            tools.store_shrink(90)  # to 26 MB; left alone it keeps 256 MB of pictures, even those of closed files
            tools.mupdf_display_errors(shown[0])
            tools.mupdf_display_warnings(shown[1])


@contextlib.contextmanager
def open_page(file: PdfFile, index: int) -> Iterator[tuple[pymupdf.Page, list[str]]]:
    """A page, and a list that holds MuPDF's messages about it once the context is left."""
    advice = "Repair the file (mutool clean, or print it to a new PDF), or leave the page out with pages=."
    messages: list[str] = []
    with open_document(file, index) as document:
        pymupdf.TOOLS.reset_mupdf_warnings()
        with _page_errors(file, advice, index):
            yield document.load_page(index), messages
        found = dict.fromkeys(without_surrogates(pymupdf.TOOLS.mupdf_warnings()).splitlines())
        lines = [line for line in found if not line.startswith("... repeated")]
        damage = [line for line in lines if means_damage(line)]
        if damage and file.strict:
            pymupdf.TOOLS.store_shrink(100)  # or what was decoded of a cut picture is shown again, without a message
    messages += lines[:_SHOWN_MESSAGES]
    if damage and file.strict:
        raise file.error(
            f"is damaged (MuPDF: {'; '.join(damage[:3])}). {advice} strict=False takes what can be read.", index
        )


@contextlib.contextmanager
def _page_errors(file: PdfFile, advice: str, page: int | None = None) -> Iterator[None]:
    try:
        yield
    except PageError:
        raise
    except _MUPDF_ERRORS as error:
        described = f"{type(error).__name__}: {error}".rstrip(".")
        raise file.error(f"can't be read as a PDF ({described}). {advice}", page) from error


def _opened(file: PdfFile) -> pymupdf.Document:
    pymupdf.TOOLS.reset_mupdf_warnings()
    with contextlib.ExitStack() as closing, _page_errors(file, "Download or save it again."):
        data = _data(file)
        document = pymupdf.open(filename=file.path if data is None else None, stream=data, filetype="pdf")
        closing.callback(document.close)
        _check_document(document, file)
        closing.pop_all()
    return document


def _data(file: PdfFile) -> bytes | None:
    """A file's bytes if they are given, or if MuPDF can't find it by its name, which is no text."""
    try:
        str(file.path).encode()
    except UnicodeEncodeError:
        return None if file.path is None else file.path.read_bytes()
    return file.data


def _check_document(document: pymupdf.Document, file: PdfFile) -> None:
    check_password(file, opened=not document.needs_pass or bool(file.password and document.authenticate(file.password)))
    check_pages(file, document.page_count, rebuilt=document.is_repaired)


_OPEN = OpenDocuments(_opened, pymupdf.Document.close)
