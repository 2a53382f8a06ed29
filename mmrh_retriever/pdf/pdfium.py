"""PDFium behind one lock, through pypdfium2's raw functions: documents, pages and pixels.

PDFium is not thread-safe, so whoever uses it holds the lock. Everything is closed explicitly and under the lock, never
when Python collects garbage, which may happen in any thread. Other users of pypdfium2 in this process don't know the
lock: let them and this package not run at the same time, or read with ``isolate=True``.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pypdfium2
from PIL import Image
from pypdfium2 import raw

from mmrh_retriever.pdf.open_documents import OpenDocuments
from mmrh_retriever.pdf.pages import LONGEST_LABEL, PageContent, check_size
from mmrh_retriever.pdf.pdf_file import PdfFile, check_pages, check_password, has_end_mark
from mmrh_retriever.pdf.pdfium_labels import labels_are_safe
from mmrh_retriever.pdf.pdfium_pictures import cut_pictures
from mmrh_retriever.pdf.pdfium_text import DisplayedPage, text_blocks
from mmrh_retriever.pdf.text import page_text, without_surrogates

READER = f"pypdfium2 {pypdfium2.PYPDFIUM_INFO.version}"
FINDS_LAYOUT = False

_ADVICE = "Repair the file (print it to a new PDF), or leave the page out with pages=."
_LONGEST_TITLE = 10_000  # bytes
_ERRORS = {
    raw.FPDF_ERR_FILE: "the file can't be opened",
    raw.FPDF_ERR_FORMAT: "not in PDF format, or damaged",
    raw.FPDF_ERR_SECURITY: "an encryption that it does not know",
}


@dataclass(frozen=True, slots=True)
class _Document:
    handle: Any
    data: bytes | None  # kept as long as PDFium reads it
    labelled: bool  # whether it may be asked for labels


class Pdfium:
    """An :class:`~mmrh_retriever.pdf.pages.OpenPdf` that PDFium reads in this process.

    Raises:
        PageError: the file can't be opened as a PDF.
    """

    def __init__(self, file: PdfFile) -> None:
        self.file = file
        with using_pdfium():
            handle = _OPEN.of(file).handle
            self.total = int(raw.FPDF_GetPageCount(handle))
            self.title = _text(lambda *buffer: raw.FPDF_GetMetaText(handle, b"Title", *buffer), _LONGEST_TITLE)

    def read(self, index: int, *, layout: bool) -> PageContent:
        """The content of the page at ``index``; PDFium finds no regions, whether ``layout`` is set or not.

        Raises:
            PageError: a page that can't be loaded, or that is too small or too large.
        """
        with _open_page(self.file, index) as (document, page):
            size = _size(page)
            check_size(size, max(size), index, self.file)
            rotation = 90 * max(0, int(raw.FPDFPage_GetRotation(page)))
            text = page_text(text_blocks(page, DisplayedPage(_box(page), rotation)))
            label = _label(document, index)
        return PageContent(size, text, label or None, rotation, (), [])


def open_pdf(file: PdfFile) -> Pdfium:
    """Open a PDF.

    Raises:
        PageError: the file can't be opened as a PDF.
    """
    return Pdfium(file)


def draw_page(file: PdfFile, index: int, width: int, height: int) -> tuple[Image.Image, list[str]]:
    """The page at ``index`` as an RGB image of ``width`` x ``height`` pixels, and which of its pictures end early.

    Raises:
        PageError: a page that can't be loaded or, strictly, has a picture that ends early.
    """
    with _open_page(file, index) as (_, page):
        cut = cut_pictures(page)
        if cut and file.strict:
            problem = f"is damaged (PDFium: {'; '.join(cut[:3])})"
            raise file.error(f"{problem}. {_ADVICE} strict=False takes what can be read.", index)
        return drawn(page, width, height), cut


def drawn(page: Any, width: int, height: int) -> Image.Image:
    """A loaded page as an RGB image of ``width`` x ``height`` pixels. The caller holds the lock."""
    pixels = (ctypes.c_ubyte * (3 * width * height))()
    bitmap = raw.FPDFBitmap_CreateEx(width, height, raw.FPDFBitmap_BGR, pixels, 3 * width)
    try:
        raw.FPDFBitmap_FillRect(bitmap, 0, 0, width, height, 0xFFFFFFFF)
        raw.FPDF_RenderPageBitmap(bitmap, page, 0, 0, width, height, 0, raw.FPDF_ANNOT | raw.FPDF_REVERSE_BYTE_ORDER)
    finally:
        raw.FPDFBitmap_Destroy(bitmap)
    return Image.frombytes("RGB", (width, height), bytes(pixels))


def using_pdfium() -> contextlib.AbstractContextManager[object]:
    """The lock that whoever uses PDFium holds."""
    return _OPEN.lock()


def close_documents() -> None:
    """Close the few documents that are kept open. Pages stay usable: they open their file again."""
    _OPEN.close_all()


@contextlib.contextmanager
def _open_page(file: PdfFile, index: int) -> Iterator[tuple[_Document, Any]]:
    """The document and the handle of a page, with PDFium to ourselves."""
    with using_pdfium():
        document = _OPEN.of(file, index)
        page = _loaded(document.handle, index)
        if not page:
            raise file.error(f"can't be read as a PDF (PDFium: it is missing or damaged). {_ADVICE}", index)
        try:
            yield document, page
        finally:
            raw.FPDF_ClosePage(page)


def _loaded(document: Any, index: int) -> Any:
    """A page whose annotations and form fields are part of what is read and drawn; null if it can't be loaded."""
    page = raw.FPDF_LoadPage(document, index)
    if page and raw.FPDFPage_GetAnnotCount(page) > 0:
        flattened = raw.FPDFPage_Flatten(page, raw.FLAT_NORMALDISPLAY)  # in memory
        if flattened == raw.FLATTEN_SUCCESS:
            raw.FPDF_ClosePage(page)
            page = raw.FPDF_LoadPage(document, index)
    return page


def _size(page: Any) -> tuple[float, float]:
    """Width and height in points as displayed; PDFium takes a UserUnit for 1."""
    return float(raw.FPDF_GetPageWidthF(page)), float(raw.FPDF_GetPageHeightF(page))


def _box(page: Any) -> tuple[float, float, float, float]:
    """What is shown of an unrotated page: left, bottom, right, top in its own units."""
    box = raw.FS_RECTF()
    raw.FPDF_GetPageBoundingBox(page, box)
    return box.left, box.bottom, box.right, box.top


def _label(document: _Document, index: int) -> str:
    if not document.labelled:
        return ""
    return _text(lambda *buffer: raw.FPDF_GetPageLabel(document.handle, index, *buffer), 2 * LONGEST_LABEL)


def _text(read: Callable[..., int], longest: int) -> str:
    """A text that PDFium writes into a buffer as UTF-16; none if it has more than ``longest`` bytes."""
    length = read(None, 0)
    if not 2 < length <= longest + 2:
        return ""
    buffer = ctypes.create_string_buffer(length)
    read(buffer, length)
    return without_surrogates(buffer.raw[: length - 2].decode("utf-16-le", "surrogatepass"))


def _last_error() -> str:
    return _ERRORS.get(raw.FPDF_GetLastError(), "no reason given")


# Open documents


def _opened(file: PdfFile) -> _Document:
    password = None if file.password is None else file.password.encode("utf-8", "replace") + b"\0"
    if file.data is not None:
        handle = raw.FPDF_LoadMemDocument64(file.data, len(file.data), password)
    else:
        handle = raw.FPDF_LoadDocument(str(file.path).encode("utf-8", "surrogateescape") + b"\0", password)
    if not handle:
        check_password(file, opened=raw.FPDF_GetLastError() != raw.FPDF_ERR_PASSWORD)
        if not has_end_mark(file):
            raise file.error(
                "is cut short: its end is missing, and PDFium can't read the rest. Download it again, or read it with "
                'backend="pymupdf" and strict=False.'
            )
        raise file.error(f"can't be read as a PDF (PDFium: {_last_error()}). Download or save it again.")
    with contextlib.ExitStack() as closing:
        closing.callback(raw.FPDF_CloseDocument, handle)
        rebuilt = not raw.FPDF_DocumentHasValidCrossReferenceTable(handle)
        check_pages(file, raw.FPDF_GetPageCount(handle), rebuilt=rebuilt)
        labelled = labels_are_safe(file, encrypted=raw.FPDF_GetSecurityHandlerRevision(handle) >= 0)
        closing.pop_all()
    return _Document(handle, file.data, labelled)


def _close(document: _Document) -> None:
    raw.FPDF_CloseDocument(document.handle)


_OPEN = OpenDocuments(_opened, _close)
