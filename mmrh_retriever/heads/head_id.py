"""Which head is meant: a layer and an index in it, and the text form of both."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from mmrh_retriever.errors import HeadSetError

_SHOWN_HEADS = 8
_HEAD_TEXT = re.compile(r"([0-9]{1,6})-([0-9]{1,6})")


class HeadId(NamedTuple):
    """One query head: its decoder layer and its index in that layer, both from 0. Text form: ``"21-10"``."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"{self.layer}-{self.head}"

    @classmethod
    def parse(cls, text: str) -> HeadId:
        """Read ``"21-10"``: layer 21, query head 10.

        Raises:
            HeadSetError: anything else.
        """
        match = _HEAD_TEXT.fullmatch(text.strip())
        if match is None:
            raise HeadSetError(
                f"{text!r} does not name a head. Expected 'layer-head', both counted from 0, such as '21-10'."
            )
        return cls(int(match[1]), int(match[2]))


def listed(heads: Iterable[HeadId]) -> str:
    """Heads for a message, cut short when there are many."""
    names = [str(head) for head in heads]
    more = f" and {len(names) - _SHOWN_HEADS} more" if len(names) > _SHOWN_HEADS else ""
    return ", ".join(names[:_SHOWN_HEADS]) + more
