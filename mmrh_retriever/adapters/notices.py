"""Warnings to whoever uses an adapter, each once per process."""

from __future__ import annotations

from functools import lru_cache

from mmrh_retriever.settings import warn_caller


@lru_cache(maxsize=1024)
def warn_once(message: str) -> None:
    """A ``UserWarning`` at the caller's line, unless the same was given before in this process."""
    warn_caller(message, UserWarning)
