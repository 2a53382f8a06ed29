"""A memory with a budget in bytes; what was used longest ago goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """What takes memory."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""


Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value", bound=Sized)


class ByteCache(Generic[Key, Value]):
    """Values by key, up to ``budget`` bytes; safe for several threads. A value larger than the budget is not kept."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._held: OrderedDict[Key, Value] = OrderedDict()  # longest unused first
        self._nbytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Values held."""
        return len(self._held)

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._nbytes

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._held.clear()
            self._nbytes = 0

    def get(self, key: Key) -> Value | None:
        """The value, or ``None`` if it is not held."""
        with self._lock:
            found = self._held.get(key)
            if found is not None:
                self._held.move_to_end(key)
            return found

    def put(self, key: Key, value: Value) -> None:
        """Keep a value in place of the one before."""
        with self._lock:
            before = self._held.pop(key, None)
            self._nbytes -= 0 if before is None else before.nbytes
            if value.nbytes > self.budget:
                return
            self._held[key] = value
            self._nbytes += value.nbytes
            while self._nbytes > self.budget:
                _, oldest = self._held.popitem(last=False)
                self._nbytes -= oldest.nbytes
