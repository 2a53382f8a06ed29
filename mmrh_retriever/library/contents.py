"""A library's pages as they are now: files looked at, changed ones read, the text of all of them ready to be asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmrh_retriever.errors import PageError
from mmrh_retriever.library.first_stage import TextSearch
from mmrh_retriever.library.reading import pages_of, read_document
from mmrh_retriever.library.records import Records
from mmrh_retriever.library.settings import LibrarySettings
from mmrh_retriever.library.watching import Seen, Watch
from mmrh_retriever.model.text_embeddings import EmbeddingScorer
from mmrh_retriever.pdf.backends import backend_of, choose_backend
from mmrh_retriever.types import FloatArray, Page


@dataclass(frozen=True, slots=True, eq=False)
class Shelf:
    """All pages at one time, in the order of the files; ``search`` picks among them, unless all are looked at."""

    pages: tuple[Page, ...]
    search: TextSearch | None


@dataclass(frozen=True, slots=True)
class _Document:
    """A file's pages, as long as it is as it was ``seen``, and is called ``doc_id``."""

    seen: Seen
    doc_id: str
    pages: tuple[Page, ...]


class Contents:
    """The files' pages, kept up to date. ``embedder`` is asked for when vectors are first needed.

    ``failed`` has the files that can't be read, and why. Whoever calls holds a lock.
    """

    def __init__(
        self, watch: Watch, records: Records, settings: LibrarySettings, embedder: Callable[[], EmbeddingScorer]
    ) -> None:
        self.failed: dict[Path, PageError] = {}
        self._watch = watch
        self._records = records
        self._backend = choose_backend(settings.pdf_backend, layout=settings.layout)
        self._settings = settings
        self._embedder = embedder if settings.first_stage in ("embedding", "hybrid") else None
        self._documents: dict[Path, _Document] = {}
        self._broken: dict[Path, tuple[Seen, PageError]] = {}
        self._vectors: dict[str, list[FloatArray]] = {}
        self._shelf: Shelf | None = None

    def refresh(self) -> Shelf:
        """The pages as the files are now: the same object as before, if nothing has changed.

        Raises:
            PageError: a file that can't be read (``on_error="raise"``); the others are taken in before.
        """
        found, failed = self._watch.look()
        names = Counter(path.name for path in found)
        documents: dict[Path, _Document] = {}
        for path, seen in found.items():
            name = path.name if names[path.name] == 1 else str(path)
            try:
                documents[path] = self._document(path, seen, name)
            except PageError as error:
                failed[path] = error
                self._broken[path] = seen, error
        self.failed = failed
        if self._shelf is None or list(documents.items()) != list(self._documents.items()):
            self._take(documents)
        if failed and self._settings.on_error == "raise":
            raise next(iter(failed.values()))
        return self._shelf or self._take(documents)

    def _take(self, documents: dict[Path, _Document]) -> Shelf:
        digests = {document.seen.digest for document in documents.values()}
        self._vectors = {digest: own for digest, own in self._vectors.items() if digest in digests}
        self._broken = {path: known for path, known in self._broken.items() if path in self.failed}
        pages = tuple(page for document in documents.values() for page in document.pages)
        search = None
        if self._embedder is not None:
            embedder = self._embedder()
            made_by = embedder.fingerprint  # takes a while: once for all
            vectors = [own for document in documents.values() for own in self._vectors_of(document, embedder, made_by)]
            search = TextSearch(pages, self._settings.first_stage, vectors=vectors, embedder=embedder)
        elif self._settings.first_stage == "bm25":
            search = TextSearch(pages, "bm25")
        self._records.keep_only(digests)
        self._documents, self._shelf = documents, Shelf(pages, search)
        return self._shelf

    def _document(self, path: Path, seen: Seen, doc_id: str) -> _Document:
        known = self._documents.get(path)
        if known is not None and (known.seen, known.doc_id) == (seen, doc_id):
            return known
        if path in self._broken and self._broken[path][0] == seen and seen.settled:
            raise self._broken[path][1]
        record = self._records.document(
            seen.digest, reader=backend_of(self._backend).READER, layout=self._settings.layout
        )
        if record is None:
            record = read_document(path, seen, backend=self._backend, layout=self._settings.layout)
            self._records.put_document(record)
        pixels = self._settings.page_pixels
        pages = pages_of(record, path, seen, doc_id=doc_id, page_pixels=pixels, backend=self._backend)
        return _Document(seen, doc_id, tuple(pages))

    def _vectors_of(self, document: _Document, embedder: EmbeddingScorer, made_by: str) -> list[FloatArray]:
        digest = document.seen.digest
        if digest not in self._vectors:
            vectors = self._records.vectors(digest, made_by)
            if vectors is None or len(vectors) != len(document.pages):
                vectors = embedder.vectors([page.text or "" for page in document.pages])
                self._records.put_vectors(digest, made_by, vectors)
            self._vectors[digest] = vectors
        return self._vectors[digest]
