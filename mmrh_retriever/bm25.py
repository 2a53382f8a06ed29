"""BM25 over text layers, by ``bm25s``: hybrid score, first stage and baseline. It knows nothing of pages or models."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


class TextIndex:
    """Texts, ready for BM25 (Robertson and Zaragoza 2009), with English stop words.

    Document frequencies are those of these texts alone. Texts without words score 0.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = len(texts)
        words = words_of(texts)
        self._index: Any = None
        if any(words):
            self._index = _bm25s().BM25()
            self._index.index(words, show_progress=False)

    def scores(self, questions: Sequence[str]) -> npt.NDArray[np.float64]:
        """BM25 of each text for each question, ``(questions, texts)``; 0 for questions without known words."""
        scores = np.zeros((len(questions), self._texts))
        if self._index is None:
            return scores
        for row, wanted in zip(scores, words_of(questions), strict=True):
            known = [word for word in wanted if word in self._index.vocab_dict]
            if known:
                row[:] = self._index.get_scores(known)
        return scores


def bm25_scores(questions: Sequence[str], texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """BM25 of texts for questions, ``(questions, texts)``; see :class:`TextIndex`."""
    return TextIndex(texts).scores(questions)


def words_of(texts: Sequence[str]) -> list[list[str]]:
    """The words of each text that BM25 counts, in their order: lower case, without English stop words."""
    found: list[list[str]] = _bm25s().tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)
    return found


def _bm25s() -> Any:
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it asks for debug messages
    return bm25s
