"""Answers run on: the pages beside a hit, which are given along with it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

Neighbours = Literal["next", "previous", "both"]
"""Which pages are given along with a hit: the following one, the one before, or both."""
PageId = tuple[Hashable, int]
"""A page's document and its index there, counted from 0."""

_STEPS = {"next": (1,), "previous": (-1,), "both": (-1, 1)}


def neighbours_of(hits: Sequence[PageId | None], which: Neighbours | None) -> list[list[PageId]]:
    """The pages beside each of the hits, which come best first: none for ``None``, and for a hit of unknown page.

    A page that is a hit itself is left out; one beside several hits goes along with the best. Indices are not below 0;
    whether a document goes on behind its last hit, the caller knows.
    """
    given = {hit for hit in hits if hit is not None}
    found: list[list[PageId]] = []
    for hit in hits:
        steps = () if hit is None or which is None else _STEPS[which]
        beside = [(hit[0], hit[1] + step) for step in steps] if hit is not None else []
        found.append([page for page in beside if page[1] >= 0 and page not in given])
        given.update(found[-1])
    return found
