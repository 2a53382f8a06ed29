"""Head scores made for tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from mmrh_retriever.heads import HeadScores

GRID = [[0.1, 0.4, -0.2], [0.4, 0.0, 0.3]]  # best first: 0-1, 1-0 (tie), 1-2, 0-0, 1-1, 0-2


def scores_of(values, task="text", length=8192, model="org/model", **extra):
    return HeadScores(np.array(values, dtype=np.float32), model, task, length, **extra)


def names(heads):
    return [str(head) for head in heads]


@st.composite
def score_matrices(draw):
    n_layers, n_heads = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    # Few distinct values, so that ties are common.
    cell = st.sampled_from([-1.0, -0.5, -0.0, 0.0, 0.125, 0.5, 1.0])
    return np.array(
        draw(st.lists(st.lists(cell, min_size=n_heads, max_size=n_heads), min_size=n_layers, max_size=n_layers))
    )
