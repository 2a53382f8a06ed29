"""Locks that a forked child finds open, whoever held them in its parent.

A child has only the thread that forked. A lock that another thread held would stay held for ever. torch's own threads
don't survive a fork either, and nothing here can help that: worker processes are started with the method ``spawn``.
"""

from __future__ import annotations

import os
import threading
import weakref


class Lock:
    """A re-entrant lock, as a context manager; if another thread held it at a fork, the child begins with a new one."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _LOCKS.add(self)

    def renew(self) -> None:
        """Put a new lock in the place of one that another thread holds."""
        if self._lock.acquire(blocking=False):  # free, or held by the thread that forked
            self._lock.release()
        else:
            self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


_LOCKS: weakref.WeakSet[Lock] = weakref.WeakSet()


def _renew_all() -> None:
    for lock in list(_LOCKS):
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
