"""A window: pages that were encoded together behind the prompt prefix, and the keys and values kept of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrh_retriever.errors import ContextOverflowError
from mmrh_retriever.model.kv_cache import PageCache
from mmrh_retriever.model.prompts import PromptSegment
from mmrh_retriever.types import Candidate, PatchGrid, TokenSpan

_NOBODY = -1


@dataclass(frozen=True, slots=True)
class Attention:
    """What questions paid a window.

    ``mass`` is ``(questions, heads, spans)``. ``tokens`` is ``(questions, keys)``, averaged over the heads, or ``None``
    if it wasn't asked for. A window of pages has one span per page.
    """

    mass: Tensor
    tokens: Tensor | None

    def split(self, count: int) -> tuple[Attention, Attention]:
        """The first ``count`` questions, and the others."""
        first, rest = slice(None, count), slice(count, None)
        tokens = (None, None) if self.tokens is None else (self.tokens[first], self.tokens[rest])
        return Attention(self.mass[first], tokens[0]), Attention(self.mass[rest], tokens[1])


@dataclass(frozen=True, slots=True)
class PageInWindow:
    """A page in its window: the key positions of its tokens and of the visual ones, and the rotary room it takes."""

    candidate: Candidate
    span: TokenSpan
    visual: tuple[int, ...]
    grid: PatchGrid | None
    extent: int


class Window:
    """Pages behind a prompt prefix, with their keys and values. Only its own methods change it.

    ``pages`` are in the order in which they were encoded, and ``spans`` is how many spans tokens count for: one per
    page. What follows has the token offset ``next_offset`` in its own context and the rotary position
    ``next_position``. ``null`` is what the null question paid, if it is remembered; ``chain`` is a digest of the pages
    so far.
    """

    def __init__(self, prefix: PromptSegment, cache: PageCache, *, independent: bool) -> None:
        self.pages: list[PageInWindow] = []
        self.spans = 0
        self.next_offset, self.next_position = len(prefix), prefix.extent
        self.null: Attention | None = None
        self.chain = b""
        self._cache: PageCache | None = cache
        self._alone = (len(prefix), prefix.extent) if independent else None
        self._length = len(prefix)
        self._owners = [torch.full((len(prefix),), _NOBODY)]
        self._offsets = [torch.arange(len(prefix))]

    def __len__(self) -> int:
        return self._length

    @property
    def cache(self) -> PageCache:
        """The keys and values; :class:`ContextOverflowError` if they were dropped."""
        if self._cache is None:
            raise ContextOverflowError("The window was dropped from memory; encode it again.", tokens=0, allowed=0)
        return self._cache

    @property
    def holds_keys(self) -> bool:
        """Whether the keys and values are in memory."""
        return self._cache is not None

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values held now."""
        return 0 if self._cache is None else self._cache.nbytes

    @property
    def page_start(self) -> tuple[int, int]:
        """The token offset and the rotary position where the next page begins."""
        return (self._length, self.next_position) if self._alone is None else self._alone

    @property
    def indices(self) -> list[int]:
        """The pages' indices in the caller's list."""
        return [page.candidate.index for page in self.pages]

    def owners(self) -> Tensor:
        """``(keys,)`` long: the span that each key counts for, -1 for none."""
        return torch.cat(self._owners)

    def offsets(self) -> Tensor:
        """``(keys,)`` long: each key's token offset in its own context (all before it, or prefix and page alone)."""
        return torch.cat(self._offsets)

    def add_page(self, candidate: Candidate, segment: PromptSegment) -> None:
        """Take in a page whose keys a pass has just put into the cache: one span."""
        visual = [offset + self._length for offset in segment.visual]
        self._add_page(candidate, _scored(segment), visual, segment.grid, segment.extent)

    def add_copy(self, other: Window, page: PageInWindow) -> None:
        """Copy a page of another window, with its keys."""
        span = page.span
        self.cache.append_from(other.cache, span.start, span.stop)
        visual = [position - span.start + self._length for position in page.visual]
        counts = other.owners()[span.start : span.stop] >= 0
        self._add_page(page.candidate, counts, visual, page.grid, page.extent)

    def add_parts(self, segment: PromptSegment) -> None:
        """Take in a segment each of whose scored spans counts for itself."""
        owners = torch.full((len(segment),), _NOBODY)
        for number, span in enumerate(segment.scored):
            owners[span.start : span.stop] = self.spans + number
        self.spans += len(segment.scored)
        self._add(owners, segment.extent)

    def add_behind(self, segment: PromptSegment) -> None:
        """Take in a segment behind everything, whose keys a pass has just put there: it counts for no span."""
        self.cache.keep()
        self._owners.append(torch.full((len(segment),), _NOBODY))
        self._offsets.append(torch.arange(len(segment)) + self.next_offset)
        self._length += len(segment)
        self.next_offset += len(segment)
        self.next_position += segment.extent

    def extend_chain(self, digest: bytes) -> bytes:
        """The digest of the pages so far and one more, which is also kept."""
        self.chain = hashlib.blake2b(self.chain + digest, digest_size=16).digest()
        return self.chain

    def remember_null(self, attention: Attention) -> None:
        """Keep what the null question paid."""
        self.null = attention

    def drop(self) -> None:
        """Forget the keys and values; everything else stays."""
        self._cache = None

    def restore(self, fresh: Window) -> None:
        """Take the keys and values of a window that was encoded anew from the same pages."""
        self._cache = fresh.cache

    def _add_page(
        self, candidate: Candidate, counts: Tensor, visual: Sequence[int], grid: PatchGrid | None, extent: int
    ) -> None:
        span = TokenSpan(self._length, self._length + counts.numel())
        self.pages.append(PageInWindow(candidate, span, tuple(visual), grid, extent))
        self._add(torch.where(counts, self.spans, _NOBODY), extent)
        self.spans += 1

    def _add(self, owners: Tensor, extent: int) -> None:
        offset, position = self.page_start
        length = owners.numel()
        self._owners.append(owners)
        self._offsets.append(torch.arange(length) + offset)
        self._length += length
        self.next_offset = max(self.next_offset, offset + length)
        self.next_position = max(self.next_position, position + extent)


def _scored(segment: PromptSegment) -> Tensor:
    """``(tokens,)`` bool: the tokens that count for the page."""
    counts = torch.zeros(len(segment), dtype=torch.bool)
    for span in segment.scored:
        counts[span.start : span.stop] = True
    return counts
