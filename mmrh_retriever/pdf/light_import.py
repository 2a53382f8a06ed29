"""PyMuPDF without what it loads beside itself: a layout model, and a Markdown writer with an OCR runtime (90 MB).

Nothing here uses either. Who wants them can still import them, and PyMuPDF's own ``to_markdown`` finds the writer.
"""

import importlib
import importlib.util
import sys
from typing import Any

_WRITER = "pymupdf4llm"
_UNUSED = ("pymupdf.layout", _WRITER)


class _Writer:
    """The Markdown writer's module, loaded when something of it is used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(_WRITER), name)


def _import_pymupdf() -> None:
    blocked = [name for name in _UNUSED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(blocked))  # type: ignore[arg-type]  # None: the import fails, as PyMuPDF expects
    try:
        import pymupdf
    finally:
        for name in blocked:
            del sys.modules[name]
    if _WRITER in blocked and importlib.util.find_spec(_WRITER) is not None:
        pymupdf.pymupdf4llm = _Writer()


if "pymupdf" not in sys.modules:
    _import_pymupdf()

import pymupdf  # noqa: E402

__all__ = ["pymupdf"]
