"""Scored pages of 4 x 4 visual tokens, made by hand."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mmrh_retriever import Page, PatchGrid, ScoredPage

GRID = PatchGrid.regular(4, 4)


def white(size=(400, 400)):
    return Image.new("RGB", size, "white")


def scored_page(scores=None, image=None, rank=1, position=0, score=0.1, **page):
    values = np.zeros(16, dtype=np.float32) if scores is None else np.asarray(scores, dtype=np.float32)
    return ScoredPage(Page(image=image or white(), **page), score, rank, position, values, GRID)


def one_hot(token, value=0.01):
    scores = np.zeros(16, dtype=np.float32)
    scores[token] = value
    return scores
