"""Hybrid scores: what the heads look at and what the text layer says, joined without any training.

Attention reads pages as images, BM25 reads their text layer; they err on other questions. Each is turned into shares: a
softmax of z-scores within the candidates. The text's shares only move what attention gives the pages that have text
among themselves. A page without text keeps its share, and the best page with text has what attention gave to the best
of them: which kind of page comes first is up to attention, so lists of scans and texts favour neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmrh_retriever.bm25 import TextIndex
from mmrh_retriever.types import FloatArray, Page

_MOST_POWER = 64.0
_HALVINGS = 60


@dataclass(frozen=True, slots=True, eq=False)
class TextLayer:
    """The candidates' text layers, ready to be asked.

    ``has_text`` is ``(pages,)``; ``weight`` is the text's part of a score, 0 to 1.
    """

    index: TextIndex
    has_text: npt.NDArray[np.bool_]
    weight: float

    @classmethod
    def of(cls, pages: Sequence[Page], weight: float) -> TextLayer | None:
        """The text layers of pages; ``None`` if no page has one."""
        texts = [page.text or "" for page in pages]
        has_text = np.array([bool(text.strip()) for text in texts])
        return cls(TextIndex(texts), has_text, weight) if has_text.any() else None

    def joined(self, attention: FloatArray, text: FloatArray) -> FloatArray:
        """The pages' shares of one question, ``(pages,)``, from ``attention`` and BM25, ``(pages,)`` each; sum 1.

        Where no page has a word of the question, attention alone decides.
        """
        known = text[self.has_text].max() > 0
        return joined_shares(attention, text, self.has_text, self.weight) if known else softmax_of_z(attention)


def joined_shares(ours: FloatArray, theirs: FloatArray, has_theirs: npt.NDArray[np.bool_], weight: float) -> FloatArray:
    """Shares of two kinds of scores, ``(scores,)`` each, the second with a ``weight`` from 0 to 1; they sum to 1.

    The second moves only what the first gives the candidates of ``has_theirs`` among themselves. Where there are
    others, the largest share among these stays what it was.
    """
    shares = softmax_of_z(ours)
    among = shares[has_theirs].sum()
    own = shares[has_theirs] / among
    joined = (1 - weight) * own + weight * softmax_of_z(theirs[has_theirs])
    shares[has_theirs] = among * (joined if has_theirs.all() else _with_largest(joined, own.max()))
    return shares


def _with_largest(shares: FloatArray, largest: float) -> FloatArray:
    """Shares in the same order whose largest is as given: all of them raised to one power, and normalised.

    Where several are the largest, they get as near as they can.
    """
    logs = np.log(np.maximum(shares, np.finfo(np.float64).tiny))
    logs -= logs.max()
    low, high = 0.0, _MOST_POWER
    for _ in range(_HALVINGS):
        power = (low + high) / 2
        if 1 / np.exp(power * logs).sum() < largest:
            low = power
        else:
            high = power
    raised = np.exp(high * logs)
    found: FloatArray = raised / raised.sum()
    return found


def softmax_of_z(scores: FloatArray) -> FloatArray:
    """Softmax of z-scores, ``(scores,)``: shares that sum to 1, equal ones where scores do not differ."""
    spread = scores.std()
    z = (scores - scores.mean()) / spread if spread > 0 else np.zeros_like(scores)
    raised = np.exp(z - z.max())
    shares: FloatArray = raised / raised.sum()
    return shares
