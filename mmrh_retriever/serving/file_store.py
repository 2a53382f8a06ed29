"""Uploaded files by the hash of their content, each with a record of what its pages hold."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from cachetools import LRUCache
from PIL import Image

from mmrh_retriever.errors import DataError, PageError
from mmrh_retriever.files import FileModel, parse_as
from mmrh_retriever.images import open_image
from mmrh_retriever.library.records import PageRecord
from mmrh_retriever.locks import Lock
from mmrh_retriever.pdf.backends import backend_of, choose_backend
from mmrh_retriever.pdf.pdf_file import PdfFile, WorkerLimits, stamp_of
from mmrh_retriever.pdf.reader import PdfPageImage, pixel_size
from mmrh_retriever.serving.errors import RequestError
from mmrh_retriever.serving.storages import FolderStorage, RemoteStorage, Storage, oldest_beyond
from mmrh_retriever.types import Page

RECORDS_IN_MEMORY = 256
"""Records that a store keeps in memory."""


class FileRecord(FileModel):
    """A file that was uploaded: ``id`` is the SHA-256 of its content, ``bytes`` its length, ``reader`` who read it."""

    format: Literal["mmrh-served-file-1"] = "mmrh-served-file-1"
    id: str
    name: str
    kind: Literal["pdf", "image"]
    bytes: int
    reader: str
    pages: tuple[PageRecord, ...]


class StoredImage:
    """An uploaded image that is opened when asked for: an :class:`~mmrh_retriever.types.ImageSource`."""

    def __init__(self, path: Path, name: str, content_id: str) -> None:
        self.path = path
        self.name = name
        self.pixels_key = f"served image {content_id}".encode()

    def load(self) -> Image.Image:
        """The image; a :class:`PageError` if it is gone or damaged."""
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise PageError(f"{self.name} is no longer here. Upload it again.", source=self.name) from error
        return open_image(content, self.name, PageError)


class FileStore:
    """The files of a server.

    Args:
        place: a folder, or an address that fsspec knows; a temporary folder if ``None``.
        budget: bytes of files and records at most. Beyond it those used longest ago are deleted.

    Raises:
        SettingsError: an address that can't be used.
        DataError: a folder that can't be made.
    """

    def __init__(self, place: str | None, budget: int) -> None:
        remote = place is not None and "://" in place
        self._temporary = TemporaryDirectory(prefix="mmrh-files-") if place is None or remote else None
        own = FolderStorage(Path(self._temporary.name if self._temporary else str(place)))
        self._folder = own.folder
        self.storage: Storage = RemoteStorage(str(place), own, budget) if remote else own
        self.budget = budget
        self._lock = Lock()
        self._records: LRUCache[str, FileRecord] = LRUCache(RECORDS_IN_MEMORY)

    def add(self, record: FileRecord, content: bytes) -> None:
        """Keep a file. One of the same content is kept under its new name.

        Raises:
            RequestError: 413 for a file that is longer than the budget.
            DataError: it can't be written.
        """
        written = record.model_dump_json().encode()
        needed = len(written) + len(content)
        if needed > self.budget:
            raise RequestError(413, f"The file needs {needed:,} bytes; all files have {self.budget:,}.")
        with self._lock:
            entries = self.storage.entries()
            others = [entry for entry in entries if not entry.name.startswith(record.id)]
            for entry in oldest_beyond(others, self.budget - needed):
                self.delete(_id_of(entry.name))
            if not self._holds(record.id, content):
                self.storage.write(_content(record.id), content)
            self.storage.write(_record(record.id), written)  # last: with its record a file is there
            self._records[record.id] = record

    def _holds(self, file_id: str, content: bytes) -> bool:
        """Whether a file is there, undamaged: it may be in use, and stays as it is."""
        try:
            return self.storage.local(_content(file_id)).read_bytes() == content
        except FileNotFoundError:
            return False

    def record(self, file_id: str) -> FileRecord:
        """What is known of a file.

        Raises:
            RequestError: 404 for a file that is not there, or that is damaged, or its record.
        """
        with self._lock:
            known = self._records.get(file_id)
            try:
                content = self.storage.local(_content(file_id))
                if known is None:
                    known = _parsed(self.storage.read(_record(file_id)), file_id)
                    _check_hash(content.read_bytes(), file_id)
                    self._records[file_id] = known
            except (FileNotFoundError, DataError) as error:
                self._records.pop(file_id, None)
                raise RequestError(404, "There is no such file. Upload it (again).") from error
            for name in (_content(file_id), _record(file_id)):
                self.storage.mark_used(name)
            return known

    def records(self) -> list[FileRecord]:
        """All files, those used last first."""
        found = []
        contents = [entry for entry in self.storage.entries() if not entry.name.endswith(".json")]
        with self._lock:
            for entry in sorted(contents, key=lambda entry: -entry.used):
                file_id = _id_of(entry.name)
                with suppress(FileNotFoundError, DataError):  # deleted meanwhile, or damaged: it can't be asked
                    found.append(self._records.get(file_id) or _parsed(self.storage.read(_record(file_id)), file_id))
        return found

    def delete(self, file_id: str) -> bool:
        """Delete a file; whether it was there."""
        with self._lock:
            there = any(entry.name.startswith(file_id) for entry in self.storage.entries())
            self._records.pop(file_id, None)
            self.storage.delete(_record(file_id))
            self.storage.delete(_content(file_id))
            return there

    def pages(self, record: FileRecord, *, pixels: int, limits: WorkerLimits) -> list[Page]:
        """A file's pages, with their texts and layout; nothing is opened until one is drawn.

        Args:
            record: what is known of the file.
            pixels: what a page of a PDF is drawn with.
            limits: those of the process that draws it.

        Raises:
            RequestError: 404 for a file that is not there any more.
        """
        try:
            path = self.storage.local(_content(record.id))
            backend = choose_backend("auto")
            file = PdfFile(record.name, path=path, limits=limits, backend=backend)
            file = replace(file, stamp=stamp_of(file))
        except (FileNotFoundError, PageError) as error:
            raise RequestError(404, "There is no such file any more. Upload it again.") from error
        found = []
        for index, page in enumerate(record.pages):
            image: StoredImage | PdfPageImage = StoredImage(path, record.name, record.id)
            if record.kind == "pdf":
                size = pixel_size(page.size, pixels, None)
                key = f"served pdf {backend_of(backend).READER} {record.id} {index} {size}".encode()
                image = PdfPageImage(file, index, *size, pixels_key=key)
            found.append(Page(image, page.text, record.name, index, page.size, page.label, page.page_regions()))
        return found

    def without_paths(self, message: str) -> str:
        """A message without the folder that the files are in."""
        return message.replace(f"{self._folder}{os.sep}", "")

    def close(self) -> None:
        """Delete the temporary folder, if there is one."""
        if self._temporary is not None:
            self._temporary.cleanup()


def content_id(content: bytes) -> str:
    """The id of a file with this content."""
    return hashlib.sha256(content).hexdigest()


def _content(file_id: str) -> str:
    return f"{file_id}.mmrh-file"


def _record(file_id: str) -> str:
    return f"{file_id}.mmrh-file.json"


def _id_of(name: str) -> str:
    return name.partition(".")[0]


def _check_hash(content: bytes, file_id: str) -> None:
    if content_id(content) != file_id:
        raise DataError(f"{_content(file_id)} is damaged: its hash is another. Upload the file again.")


def _parsed(written: bytes, file_id: str) -> FileRecord:
    found = parse_as(FileRecord, written, where=_record(file_id), what="record of a file")
    if found.id != file_id:
        raise DataError(f"{_record(file_id)} is the record of {found.id}: it was renamed. Upload the file again.")
    return found
