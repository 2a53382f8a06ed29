"""A few documents kept open between two pages, behind the lock that a library needs which is not thread-safe."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from mmrh_retriever.pdf.pdf_file import PdfFile, stamp_of

MAX_OPEN_DOCUMENTS = 4
"""Documents kept open between two pages."""

Document = TypeVar("Document")


class OpenDocuments(Generic[Document]):
    """The open documents of one library, opened and closed by ``open_file`` and ``close``. Callers hold its lock."""

    def __init__(self, open_file: Callable[[PdfFile], Document], close: Callable[[Document], object]) -> None:
        self._open_file = open_file
        self._close = close
        self._lock = threading.RLock()
        self._open: OrderedDict[int, tuple[weakref.ref[PdfFile], Document]] = OrderedDict()  # by the PdfFile's id
        self._abandoned: list[object] = []
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def lock(self) -> contextlib.AbstractContextManager[object]:
        """The lock that whoever uses the library holds."""
        return self._lock

    def of(self, file: PdfFile, page: int | None = None) -> Document:
        """The document of a file, opened if it is not; for a ``page``, if given.

        Raises:
            PageError: it can't be opened, or has changed since its pages were read.
        """
        if stamp_of(file, page) != file.stamp:
            raise file.error("has changed on disk since its pages were read. Read it again.", page)
        known, document = self._open.get(id(file), (None, None))
        if known is not None and known() is not file:  # of a file that is gone, and was not closed: ids are used again
            self._close(self._open.pop(id(file))[1])
            document = None
        if document is None:
            document = self._open_file(file)
            self._open[id(file)] = weakref.ref(file), document
            weakref.finalize(file, self._forget, id(file)).atexit = False
            while len(self._open) > MAX_OPEN_DOCUMENTS:
                self._close(self._open.popitem(last=False)[1][1])
        self._open.move_to_end(id(file))
        return document

    def close_all(self) -> None:
        """Close what is open. Pages stay usable: they open their file again."""
        with self._lock:
            while self._open:
                self._close(self._open.popitem()[1][1])

    def _forget(self, key: int) -> None:
        """The last page of a file is gone: close it, unless the library is busy (then it is pushed out later)."""
        if self._lock.acquire(blocking=False):
            try:
                if (known := self._open.pop(key, None)) is not None:
                    self._close(known[1])
            finally:
                self._lock.release()

    def _after_fork(self) -> None:
        # A child shares its parent's file positions: it must neither use nor close the parent's documents.
        self._abandoned.append(self._open)
        self._lock, self._open = threading.RLock(), OrderedDict()
