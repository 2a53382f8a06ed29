"""Encoded pages kept for later calls: in memory up to a budget, and on disk if a folder is given.

A page's keys and values depend on the model, the processors and the prompt; where pages are not independent, also on
the pages before it. All of these are in its name or in its file's fingerprint, so that what is taken back is what
encoding would give. A file of another model or prompt, or a damaged one, is refused and made again. The folder may hold
other files; those are never touched.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cachetools import LRUCache
from safetensors import SafetensorError

from mmrh_retriever.encoding.page_files import StoredPage, file_name, half_written, is_page_file, read_page, write_page
from mmrh_retriever.errors import DataError, SettingsError
from mmrh_retriever.locks import Lock
from mmrh_retriever.settings import warn_caller

logger = logging.getLogger(__name__)

DEFAULT_STORE_MEMORY = 4 * 1024**3
"""Bytes of encoded pages that a store holds in memory."""
DEFAULT_STORE_DISK = 32 * 1024**3
"""Bytes of files that a store's folder holds."""
LEFTOVER_AGE = 3600.0
"""Seconds after which a half-written file is one that a killed writer left."""


class PageStore:
    """Encoded pages for later calls, of any number of rerankers.

        store = PageStore(2 * 1024**3, "encoded/")
        reranker = Reranker.from_pretrained(store=store)

    With ``independent=True`` (the bundled model's way) every page is kept on its own. Any selection of pages seen
    before then costs the question's tokens alone. A page's label holds its own number (``Page.number``), also among
    pages of other documents. Otherwise a page is found again behind the same pages only.

    Args:
        memory: bytes of keys and values to hold in plain CPU memory; the pages used longest ago go first.
        folder: if given, every page is also written there, for later processes; one folder per model.
        disk: bytes of files that the folder may hold; the pages used longest ago are deleted. No other file is touched.

    Raises:
        SettingsError: a negative budget, or a folder that is a file or can't be made.
    """

    def __init__(
        self, memory: int = DEFAULT_STORE_MEMORY, folder: str | Path | None = None, *, disk: int = DEFAULT_STORE_DISK
    ) -> None:
        if memory < 0 or disk < 0:
            raise SettingsError(f"A store's budgets are in bytes and not negative, got memory={memory}, disk={disk}.")
        self.memory = memory
        self.disk = disk
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except FileExistsError as error:
                raise SettingsError(f"{self.folder} is a file. Expected a folder for encoded pages.") from error
            except (OSError, ValueError) as error:
                problem = f"The store's folder {str(self.folder)[:200]!r} can't be made ({error}). Choose another."
                raise SettingsError(problem) from error
        self.hits = 0
        self.misses = 0
        self._pages: LRUCache[tuple[str, str], StoredPage] = LRUCache(memory, getsizeof=lambda page: page.nbytes)
        self._lock = Lock()
        self._on_disk = sum(size for _, size, _ in self._files())
        self._swept = False

    def __len__(self) -> int:
        """Pages in memory."""
        return len(self._pages)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values in memory."""
        return int(self._pages.currsize)

    def clear(self) -> None:
        """Forget the pages in memory; files stay."""
        with self._lock:
            self._pages.clear()

    def get(self, fingerprint: str, name: str) -> StoredPage | None:
        """A page by its name, or ``None`` if it isn't there or its file can't be used (which is logged)."""
        with self._lock:
            found: StoredPage | None = self._pages.get((fingerprint, name))
        if found is None and self.folder is not None:
            found = self._read(self.folder, fingerprint, name)
            if found is not None:
                self._hold(fingerprint, name, found)
        with self._lock:
            self.hits += found is not None
            self.misses += found is None
        return found

    def put(self, fingerprint: str, name: str, page: StoredPage) -> None:
        """Keep a page. A folder that can't be written is logged; the page stays in memory."""
        self._hold(fingerprint, name, page)
        if self.folder is not None:
            try:
                self._sweep(self.folder)
                written = write_page(self.folder, fingerprint, name, page)
                with self._lock:
                    self._on_disk += written
                    if self._on_disk > self.disk:
                        self._on_disk = self._delete_oldest()
            except (OSError, SafetensorError) as error:
                logger.warning("An encoded page could not be written to %s and stays in memory: %s", self.folder, error)

    def _hold(self, fingerprint: str, name: str, page: StoredPage) -> None:
        if page.nbytes <= self.memory:
            with self._lock:
                self._pages[fingerprint, name] = page

    def _read(self, folder: Path, fingerprint: str, name: str) -> StoredPage | None:
        path = folder / file_name(name)
        if not path.is_file():
            return None
        try:
            found = read_page(folder, fingerprint, name)
        except (DataError, OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            logger.warning("%s is not used and will be made again: %s", path, error)
            return None
        with suppress(OSError):  # a folder that may only be read
            path.touch()
        return found

    def _files(self) -> list[tuple[int, int, Path]]:
        """The folder's pages, those used longest ago first: time, bytes and path of each."""
        found = []
        for path in () if self.folder is None else self.folder.glob(file_name("*")):
            with suppress(OSError):  # another process has deleted it, or it is a link that leads nowhere
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        return sorted(found)

    def _delete_oldest(self) -> int:
        """Bring the folder under its budget; gives the bytes that are left."""
        files = self._files()
        left = sum(size for _, size, _ in files)
        for _, size, path in files:
            if left <= self.disk:
                break
            if is_page_file(path):
                path.unlink(missing_ok=True)
            left -= size
        return left

    def _sweep(self, folder: Path) -> None:
        """Before this store's first write, delete what killed writers left."""
        if not self._swept:
            self._swept = True
            for path in half_written(folder):
                with suppress(OSError):  # its writer lives and has moved it, or it is another user's
                    if time.time() - path.stat().st_mtime > LEFTOVER_AGE:
                        path.unlink()


@dataclass(slots=True)
class ModelPages:
    """One model's pages in a store: what an engine holds for one call.

    ``fingerprint`` stands for model, processors and prompt (see ``model.fingerprints``); ``extent`` for what is kept of
    a page: how many of the first layers' keys, and of which heads in the last of these. A call whose own pages do not
    fit in the store's memory says so once.
    """

    store: PageStore
    fingerprint: str
    extent: str
    pages: int = 0
    nbytes: int = 0

    def get(self, digest: bytes) -> StoredPage | None:
        """A page by the digest of what it holds and what stands before it."""
        return self.store.get(self.fingerprint, self._name(digest))

    def put(self, digest: bytes, page: StoredPage) -> None:
        """Keep a page."""
        self.store.put(self.fingerprint, self._name(digest), page)
        fitted = self.nbytes <= self.store.memory
        self.pages, self.nbytes = self.pages + 1, self.nbytes + page.nbytes
        if fitted and self.nbytes > self.store.memory > 0 and self.store.folder is None:
            warn_caller(
                f"A store's memory of {self.store.memory / 1024**2:,.0f} MiB holds {self.pages - 1} of the pages of "
                "this call; of more, the first ones are dropped again, and run again for the next question. Raise "
                "page_memory (PageStore(memory=)), or give a folder (store=).",
                UserWarning,
            )

    def _name(self, digest: bytes) -> str:
        return f"{digest.hex()}-{self.extent}"
