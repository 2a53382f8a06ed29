"""What a library knows of documents, in a folder: a file per content, checked by a digest, made again if damaged."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from mmrh_retriever.errors import DataError
from mmrh_retriever.files import FileModel, leftovers, make_folder, parse_as, write_atomically
from mmrh_retriever.types import Box, FloatArray, Page, Region

logger = logging.getLogger(__name__)

_ENDING = ".mmrh-document"


class RegionRecord(FileModel):
    """A region of a page."""

    box: Box
    kind: str
    text: str | None


class PageRecord(FileModel):
    """A page, but for its pixels."""

    text: str | None
    size: tuple[float, float]
    label: str | None
    metadata: dict[str, Any]
    regions: tuple[RegionRecord, ...] = ()

    @classmethod
    def of(cls, page: Page, metadata: dict[str, Any]) -> PageRecord:
        """The record of a page, with this metadata instead of its own."""
        regions = tuple(RegionRecord(box=region.box, kind=region.kind, text=region.text) for region in page.regions)
        return cls(text=page.text, size=page.size or (0.0, 0.0), label=page.label, metadata=metadata, regions=regions)

    def page_regions(self) -> tuple[Region, ...]:
        """The page's regions, as a page has them."""
        return tuple(Region(region.box, region.kind, region.text) for region in self.regions)


class DocumentRecord(FileModel):
    """The pages of a file by the digest of its content.

    ``reader`` is the library that read it, with its version; ``layout`` says whether regions were looked for.
    """

    format: Literal["mmrh-library-1"] = "mmrh-library-1"
    reader: str
    digest: str
    layout: bool
    pages: tuple[PageRecord, ...]


class VectorsRecord(FileModel):
    """How many chunks each page has, and of what length their vectors are, which follow as float32."""

    digest: str
    made_by: str
    width: int
    chunks: tuple[int, ...]


Record = TypeVar("Record", DocumentRecord, VectorsRecord)


class Records:
    """The folder's records; without a folder there are none.

    A folder that can't be written is logged, and everything goes on in memory.

    Raises:
        DataError: the folder can't be made.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None:
            make_folder(folder)

    def document(self, digest: str, *, reader: str, layout: bool) -> DocumentRecord | None:
        """What is known of a content from this reader; ``None`` if nothing that can be used."""
        payload = self._read(digest)
        if payload is None:
            return None
        found = self._parsed(DocumentRecord, payload, digest, digest)
        usable = found is not None and found.reader == reader and (found.layout or not layout)
        return found if usable else None

    def put_document(self, record: DocumentRecord) -> None:
        """Keep what is known of a content."""
        self._write(record.digest, record.model_dump_json().encode())

    def vectors(self, digest: str, made_by: str) -> list[FloatArray] | None:
        """The vectors of each page of a content, ``(chunks, width)``, by the model that made them."""
        name = f"{digest}-{made_by}"
        payload = self._read(name)
        if payload is None:
            return None
        header, _, data = payload.partition(b"\n")
        found = self._parsed(VectorsRecord, header, name, digest)
        if found is None or found.made_by != made_by or len(data) != 4 * found.width * sum(found.chunks):
            return None
        flat = np.frombuffer(data, "<f4").reshape(sum(found.chunks), found.width)
        return np.split(flat, np.cumsum(found.chunks)[:-1])

    def put_vectors(self, digest: str, made_by: str, vectors: Sequence[FloatArray]) -> None:
        """Keep the vectors of each page of a content."""
        flat = np.concatenate(vectors).astype("<f4")
        chunks = tuple(len(own) for own in vectors)
        header = VectorsRecord(digest=digest, made_by=made_by, width=flat.shape[1], chunks=chunks)
        self._write(f"{digest}-{made_by}", header.model_dump_json().encode() + b"\n" + flat.tobytes())

    def keep_only(self, digests: Collection[str]) -> None:
        """Delete the records of all other contents, and what killed writers left."""
        if self.folder is None:
            return
        others = [path for path in self.folder.glob(f"*{_ENDING}") if path.stem.partition("-")[0] not in digests]
        for path in (*others, *leftovers(self.folder)):
            with suppress(OSError):  # it is gone already, or the folder may only be read
                path.unlink()

    def _read(self, name: str) -> bytes | None:
        if self.folder is None or not (path := self.folder / f"{name}{_ENDING}").is_file():
            return None
        try:
            checked, _, payload = path.read_bytes().partition(b"\n")
        except OSError as error:
            logger.warning("%s can't be read and will be made again: %s", path, error)
            return None
        if checked != _checked(payload):
            logger.warning("%s is damaged and will be made again.", path)
            return None
        return payload

    def _parsed(self, model: type[Record], payload: bytes, name: str, digest: str) -> Record | None:
        try:
            found = parse_as(model, payload, where=name, what="record of a document")
        except DataError as error:  # of another version of this package
            logger.warning("%s is not used and will be made again: %s", f"{name}{_ENDING}", error)
            return None
        return found if found.digest == digest else None

    def _write(self, name: str, payload: bytes) -> None:
        if self.folder is not None:
            try:
                write_atomically(self.folder / f"{name}{_ENDING}", _checked(payload) + b"\n" + payload)
            except DataError as error:
                logger.warning("What is known of a document can't be kept: %s", error)


def _checked(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=16).hexdigest().encode()
