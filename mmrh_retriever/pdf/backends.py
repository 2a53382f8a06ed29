"""Which library reads a PDF: PyMuPDF, or PDFium, which is under a permissive licence."""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from typing import Literal, cast, get_args

from mmrh_retriever.errors import SettingsError
from mmrh_retriever.pdf.pages import PdfBackend
from mmrh_retriever.pdf.pdf_file import BackendName

PdfBackendName = Literal["auto", "pymupdf", "pdfium"]
"""``"auto"`` is PyMuPDF where it is installed, else PDFium."""
_MODULES: dict[BackendName, str] = {"pymupdf": "mmrh_retriever.pdf.mupdf", "pdfium": "mmrh_retriever.pdf.pdfium"}
_NEEDS = {
    "pymupdf": 'PyMuPDF, which is not installed. Install it (pip install pymupdf), or read with backend="pdfium"',
    "pdfium": "pypdfium2, which is not installed. Install it (pip install pypdfium2)",
}
_PYMUPDF_ALONE = (
    'layout=True needs PyMuPDF: PDFium finds no regions. Read with backend="pymupdf" (pip install pymupdf; it is under '
    "the AGPL-3.0 or a commercial licence), or without layout."
)


def choose_backend(backend: PdfBackendName, *, layout: bool = False) -> BackendName:
    """The library that ``backend`` names.

    Raises:
        SettingsError: no such name, or ``layout`` from a library that finds none.
        ImportError: it is not installed.
    """
    if backend not in get_args(PdfBackendName):
        names = ", ".join(map(repr, get_args(PdfBackendName)))
        raise SettingsError(f"backend is {backend!r}. Expected one of {names}.")
    chosen: BackendName = _preferred() if backend == "auto" else backend
    if layout and not backend_of(chosen).FINDS_LAYOUT:
        raise SettingsError(_PYMUPDF_ALONE)
    backend_of(chosen)
    return chosen


def finds_layout(backend: PdfBackendName) -> bool:
    """Whether ``layout=True`` goes with a backend."""
    return backend_of(choose_backend(backend)).FINDS_LAYOUT


@cache
def _preferred() -> BackendName:
    try:
        backend_of("pymupdf")
    except ImportError:
        return "pdfium"
    return "pymupdf"


def backend_of(name: BackendName) -> PdfBackend:
    """The library of a name, loaded if it is not yet.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return cast(PdfBackend, import_module(_MODULES[name]))
    except ModuleNotFoundError as error:
        if error.name not in ("pymupdf", "pypdfium2"):
            raise
        raise ImportError(f"Reading this PDF needs {_NEEDS[name]}.", name=error.name) from error


def close_documents() -> None:
    """Close the few documents that are kept open. Pages stay usable: they open their file again."""
    for name, module in _MODULES.items():
        if module in sys.modules:
            backend_of(name).close_documents()
