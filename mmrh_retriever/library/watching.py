"""Which files a library has, and what is in them: told apart by content.

A file counts as unchanged while its size, its times (of change and of its entry) and its inode are as they were when it
was last read whole; any other is read again and compared by its digest. A file that had changed less than two seconds
before it was read is read again, too: a second change within one tick of the clock would show nowhere else.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmrh_retriever.errors import PageError
from mmrh_retriever.files import files_below, is_folder, is_special
from mmrh_retriever.images import IMAGE_ENDINGS

ENDINGS = (".pdf", *IMAGE_ENDINGS)
"""What the names of files end in that a library takes from a folder."""
SETTLED = 2 * 10**9
"""Nanoseconds after a change from which on a file's times tell it from the next change."""

Stamp = tuple[int, int, int, int]
"""A file's size in bytes, times of change and of its entry in nanoseconds, and inode."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A file as it was last read: its stamp then, the digest of its content, and whether the stamp may be trusted."""

    stamp: Stamp
    digest: str
    settled: bool = field(compare=False)


class Watch:
    """Files, and those in folders, as they are whenever one looks.

    ``accept`` gives the path that a file is read from, or raises a :class:`PageError` to refuse it.
    """

    def __init__(self, sources: Sequence[Path], accept: Callable[[Path], Path] | None = None) -> None:
        self.sources = tuple(sources)
        self._accept = accept
        self._seen: dict[Path, Seen] = {}

    def look(self) -> tuple[dict[Path, Seen], dict[Path, PageError]]:
        """The files as they are now, in the order of the sources, each once; and why others can't be read."""
        found: dict[Path, Seen] = {}
        failed: dict[Path, PageError] = {}
        for path in self._listed():
            try:
                own = path if self._accept is None else self._accept(path)
                if own not in found:
                    found[own] = self._look_at(own)
            except PageError as error:
                failed[path] = error
        self._seen = found
        return found, failed

    def _listed(self) -> dict[Path, None]:
        listed: dict[Path, None] = {}
        for source in self.sources:
            listed.update(dict.fromkeys(files_below(source, ENDINGS) if is_folder(source) else [source]))
        return listed

    def _look_at(self, path: Path) -> Seen:
        try:
            stamp, before = stamp_of(path), self._seen.get(path)
            if before is not None and before.settled and before.stamp == stamp:
                return before
            if is_special(path):
                raise PageError(f"{path} is not a plain file, but a pipe or a device.", source=str(path))
            now = time.time_ns()
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        except (OSError, ValueError) as error:
            described = getattr(error, "strerror", None) or error
            problem = f"{path}: can't be read ({described}). Check the path and its permissions."
            raise PageError(problem, source=str(path)) from error
        return Seen(stamp, digest, now - max(stamp[1], stamp[2]) > SETTLED)


def stamp_of(path: Path) -> Stamp:
    """A file's stamp as it is now; what ``stat`` raises, if it can't be had."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
