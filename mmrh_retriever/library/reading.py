"""A file's pages, read once into a record, and made from it again without opening the file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmrh_retriever.errors import PageError
from mmrh_retriever.images import IMAGE_ENDINGS, open_image
from mmrh_retriever.library.records import DocumentRecord, PageRecord
from mmrh_retriever.library.watching import Seen, stamp_of
from mmrh_retriever.pdf.backends import backend_of
from mmrh_retriever.pdf.pdf_file import BackendName, PdfFile
from mmrh_retriever.pdf.reader import PdfPageImage, pixel_size, read_pdf
from mmrh_retriever.ranking.grid_regions import with_some_regions
from mmrh_retriever.types import Page


@dataclass(frozen=True, slots=True, eq=False)
class ImageFile:
    """An image file that is opened when asked for, if its content is still that of ``digest``."""

    path: Path
    digest: str

    @property
    def pixels_key(self) -> bytes:
        """What stands for the image: the digest of its file."""
        return f"image {self.digest}".encode()

    def load(self) -> Image.Image:
        """The image; a :class:`PageError` if the file has changed."""
        data = self.path.read_bytes()
        if hashlib.blake2b(data, digest_size=16).hexdigest() != self.digest:
            raise _changed(self.path)
        return open_image(data, self.path.name, PageError)


def read_document(path: Path, seen: Seen, *, backend: BackendName, layout: bool) -> DocumentRecord:
    """What a file holds.

    Raises:
        PageError: it can't be read, or changed meanwhile.
    """
    if path.suffix.lower() in IMAGE_ENDINGS:
        pages = [Page(image=path, doc_id=path.name, metadata={})]
    else:
        pages = read_pdf(path, layout=layout, backend=backend)
    try:
        changed = stamp_of(path) != seen.stamp
    except OSError:
        changed = True
    if changed:
        raise _changed(path)
    records = tuple(
        PageRecord.of(page, {name: value for name, value in page.metadata.items() if name != "path"}) for page in pages
    )
    return DocumentRecord(reader=backend_of(backend).READER, digest=seen.digest, layout=layout, pages=records)


def pages_of(
    record: DocumentRecord, path: Path, seen: Seen, *, doc_id: str, page_pixels: int, backend: BackendName
) -> list[Page]:
    """The pages of a record as pages of a file; nothing is opened."""
    size, changed, _, inode = seen.stamp
    file = PdfFile(path.name, path=path, stamp=(changed, size, inode), backend=backend)
    pages = []
    for index, page in enumerate(record.pages):
        image: ImageFile | PdfPageImage
        if path.suffix.lower() in IMAGE_ENDINGS:
            image = ImageFile(path, seen.digest)
        else:
            pixels = pixel_size(page.size, page_pixels, None)
            image = PdfPageImage(file, index, *pixels, f"{record.reader} {seen.digest} {index} {pixels}".encode())
        metadata = {"path": str(path), **page.metadata}
        made = Page(image, page.text, doc_id, index, page.size, page.label, page.page_regions(), metadata)
        pages.append(with_some_regions(made) if record.layout else made)
    return pages


def _changed(path: Path) -> PageError:
    return PageError(f"{path} has changed since it was read. Ask again: it is then read again.", source=str(path))
