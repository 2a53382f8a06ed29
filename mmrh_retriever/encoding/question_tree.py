"""Token sequences that go through one pass side by side, with what they begin alike laid once (a trie).

All questions to the same pages begin with the prompt's label, and many with the same words. Under causal attention a
token depends on nothing behind it, so one pass over a shared beginning serves every sequence that begins with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class PrefixTree:
    """Sequences of token ids as one pass takes them.

    ``ids`` are the pass's tokens and ``depths`` how many tokens stand before each in its own sequence; ``paths`` give,
    for each sequence, the places of its tokens in ``ids``, in their order.
    """

    ids: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    paths: list[tuple[int, ...]] = field(default_factory=list)
    _next: dict[tuple[int, int], int] = field(default_factory=dict)  # (place before or -1, id) -> place

    def __len__(self) -> int:
        return len(self.ids)

    def fresh(self, ids: Sequence[int]) -> int:
        """How many tokens :meth:`add` would lay: those behind the longest beginning that is laid already."""
        return len(ids) - len(self._laid(ids))

    def add(self, ids: Sequence[int]) -> None:
        """Lay one more sequence."""
        path = self._laid(ids)
        place = path[-1] if path else -1
        for depth in range(len(path), len(ids)):
            before, place = place, len(self.ids)
            self._next[before, ids[depth]] = place
            self.ids.append(ids[depth])
            self.depths.append(depth)
            path.append(place)
        self.paths.append(tuple(path))

    def _laid(self, ids: Sequence[int]) -> list[int]:
        """Places of the longest beginning of ``ids`` that is laid already."""
        path: list[int] = []
        place = -1
        for number in ids:
            following = self._next.get((place, number))
            if following is None:
                break
            place = following
            path.append(place)
        return path
