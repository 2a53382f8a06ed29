"""Questions that go through one pass side by side; what they begin with alike stands there once (a trie).

All questions to the same pages begin with the prompt's label, and many with the same words. Under causal attention a
token depends on nothing behind it. So one pass over a shared beginning serves every question that begins with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class QuestionTree:
    """Questions as one pass takes them.

    ``ids`` are the pass's tokens, and ``depths`` how many tokens each has before it in its own question. ``paths`` give
    for each question the offsets of its tokens in ``ids``, in order.
    """

    ids: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    paths: list[tuple[int, ...]] = field(default_factory=list)
    _next: dict[tuple[int, int], int] = field(default_factory=dict)  # (offset before or -1, id) -> offset

    def __len__(self) -> int:
        return len(self.ids)

    def new_tokens(self, ids: Sequence[int]) -> int:
        """How many tokens :meth:`add` would add: those behind the longest beginning that is there already."""
        return len(ids) - len(self._known(ids))

    def add(self, ids: Sequence[int]) -> None:
        """Add one more question."""
        path = self._known(ids)
        offset = path[-1] if path else -1
        for depth in range(len(path), len(ids)):
            before, offset = offset, len(self.ids)
            self._next[before, ids[depth]] = offset
            self.ids.append(ids[depth])
            self.depths.append(depth)
            path.append(offset)
        self.paths.append(tuple(path))

    def _known(self, ids: Sequence[int]) -> list[int]:
        """Offsets of the longest beginning of ``ids`` that is there already."""
        path: list[int] = []
        offset = -1
        for number in ids:
            following = self._next.get((offset, number))
            if following is None:
                break
            offset = following
            path.append(offset)
        return path
