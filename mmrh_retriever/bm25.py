"""BM25 over text layers, by ``bm25s`` (extra ``eval``). It knows nothing of pages or models."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import import_module

import numpy as np
import numpy.typing as npt


def bm25_scores(questions: Sequence[str], texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """BM25 of texts for questions (Robertson and Zaragoza 2009), ``(questions, texts)``, with English stop words.

    Document frequencies are those of ``texts`` alone. Questions and texts without words score 0.
    """
    try:
        bm25s = import_module("bm25s")
    except ImportError as error:
        raise ImportError("BM25 needs bm25s: pip install 'mmrh-retriever[eval]'.") from error
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it asks for debug messages
    scores = np.zeros((len(questions), len(texts)))
    words = bm25s.tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)
    if not any(words):
        return scores
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    asked = bm25s.tokenize(list(questions), stopwords="en", return_ids=False, show_progress=False)
    for row, wanted in zip(scores, asked, strict=True):
        known = [word for word in wanted if word in index.vocab_dict]
        if known:
            row[:] = index.get_scores(known)
    return scores
