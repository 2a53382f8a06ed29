"""Where uploaded files are: in a folder, or at an address that fsspec knows, such as ``s3://bucket/folder``."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mmrh_retriever.errors import SettingsError
from mmrh_retriever.files import leftovers, make_folder, write_atomically

OWN_NAME = re.compile(r"[0-9a-f]{64}\.mmrh-file(\.json)?")
"""Names of the server's files. No others are listed, read, or deleted."""
LEFTOVER_AGE = 3600.0
"""Seconds after which a half-written file is one that a killed server left."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the server's: its name, its bytes, and when it was used, in seconds since 1970."""

    name: str
    size: int
    used: float


class Storage(Protocol):
    """Files by name. What is not there raises ``FileNotFoundError``; each file is there whole, or not at all."""

    def entries(self) -> list[Entry]:
        """All files of the server's."""
        ...  # pragma: no cover

    def read(self, name: str) -> bytes:
        """A file's content."""
        ...  # pragma: no cover

    def write(self, name: str, content: bytes) -> None:
        """Write a file, in the place of an earlier one."""
        ...  # pragma: no cover

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        ...  # pragma: no cover

    def mark_used(self, name: str) -> None:
        """Remember that a file was used now, where the storage can."""
        ...  # pragma: no cover

    def local(self, name: str) -> Path:
        """A path on this machine at which a file's content is."""
        ...  # pragma: no cover


class FolderStorage:
    """Files in a folder, which may hold others."""

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self.folder = folder
        for path in leftovers(folder):
            with suppress(OSError):
                if OWN_NAME.search(path.name) and time.time() - path.stat().st_mtime > LEFTOVER_AGE:
                    path.unlink()

    def entries(self) -> list[Entry]:
        """All files of the server's."""
        found = []
        for path in self.folder.iterdir():
            if OWN_NAME.fullmatch(path.name):
                with suppress(FileNotFoundError):
                    status = path.stat()
                    found.append(Entry(path.name, status.st_size, max(status.st_atime, status.st_mtime)))
        return found

    def read(self, name: str) -> bytes:
        """A file's content."""
        return (self.folder / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Write a file, in the place of an earlier one."""
        write_atomically(self.folder / name, content)

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        (self.folder / name).unlink(missing_ok=True)

    def mark_used(self, name: str) -> None:
        """Set the time of a file's last access to now. That of its change stays, by which readers know it again."""
        path = self.folder / name
        with suppress(OSError):  # a folder that may only be read, or a file that is gone
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))

    def local(self, name: str) -> Path:
        """The file itself."""
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(name)
        return path


class RemoteStorage:
    """Files at an address of fsspec's.

    Args:
        address: such as ``s3://bucket/folder``.
        copies: where copies of those in use are kept.
        most: bytes of copies at most.

    Raises:
        SettingsError: an address of a kind that is not installed, or that can't be reached.
    """

    def __init__(self, address: str, copies: FolderStorage, most: int) -> None:
        import fsspec

        try:
            system, root = fsspec.core.url_to_fs(address)
            system.makedirs(root, exist_ok=True)
        except (ImportError, ValueError, OSError) as error:
            kind = address.partition("://")[0]
            advice = "Install what fsspec needs for it (s3fs for s3://), or give a folder."
            raise SettingsError(f"files={kind}://... can't be used ({error}). {advice}") from error
        self._system: Any = system
        self._root = str(root).rstrip("/")
        self._copies = copies
        self._most = most

    def entries(self) -> list[Entry]:
        """All files of the server's; the time is that of their writing."""
        self._system.invalidate_cache()
        found = []
        for item in self._system.ls(self._root, detail=True):
            name = str(item["name"]).rpartition("/")[2]
            if OWN_NAME.fullmatch(name):
                found.append(Entry(name, int(item["size"] or 0), self._system.modified(item["name"]).timestamp()))
        return found

    def read(self, name: str) -> bytes:
        """A file's content."""
        content: bytes = self._system.cat_file(f"{self._root}/{name}")
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file; object stores show it when it is whole."""
        self._system.pipe_file(f"{self._root}/{name}", content)

    def delete(self, name: str) -> None:
        """Delete a file and its copy, if they are there."""
        with suppress(FileNotFoundError):
            self._system.rm_file(f"{self._root}/{name}")
        self._copies.delete(name)

    def mark_used(self, name: str) -> None:
        """Do nothing: object stores keep no such time."""

    def local(self, name: str) -> Path:
        """A copy of the file, made now if there is none."""
        try:
            self._copies.mark_used(name)
            return self._copies.local(name)
        except FileNotFoundError:
            content = self.read(name)
        for entry in oldest_beyond(self._copies.entries(), self._most - len(content)):
            self._copies.delete(entry.name)
        self._copies.write(name, content)
        return self._copies.local(name)


def oldest_beyond(entries: list[Entry], budget: int) -> list[Entry]:
    """The files used longest ago, without which the others have at most ``budget`` bytes."""
    excess = sum(entry.size for entry in entries) - budget
    found = []
    for entry in sorted(entries, key=lambda entry: entry.used):
        if excess <= 0:
            break
        found.append(entry)
        excess -= entry.size
    return found
