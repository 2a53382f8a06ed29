"""A ranker that knows the answers of the generated documents in ``conftest.py``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmrh_retriever import Page
from mmrh_retriever.errors import MMRHError
from mmrh_retriever.evaluation.rankers import Scores, listed_regions


class Oracle:
    """Knows that question "N" is answered on page N, and the box that holds the word."""

    asked: list[str]

    def __init__(self, fail_on: str = "") -> None:
        self.asked = []
        self.fail_on = fail_on

    def rank(self, questions: Sequence[str], pages: Sequence[Page]) -> Scores:
        name = str(pages[0].doc_id)
        self.asked.append(name)
        if name == self.fail_on:
            raise MMRHError("no power")
        return np.array([[float(str(page.index) in question) for page in pages] for question in questions])

    def rank_regions(self, questions: Sequence[str], pages: Sequence[Page]) -> Scores:
        indices = [page.index for page in pages for _ in page.regions]
        assert len(indices) == len(listed_regions(pages))
        return np.array([[float(str(index) in question) for index in indices] for question in questions])
