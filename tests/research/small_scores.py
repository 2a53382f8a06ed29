"""Head scores small enough to check by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mmrh_retriever.heads.sets import HeadScores, HeadScoresTable


def scores_of(values: Any, task: str = "text", length: int = 8192, **extra: Any) -> HeadScores:
    """Scores of one task and context length."""
    return HeadScores(np.array(values), "org/model", task, length, **extra)


SMALL = HeadScoresTable(
    [
        scores_of([[0.8, 0.2], [0.1, 0.1], [0.0, -0.5]], "text", 8192, source="by hand"),
        scores_of([[0.8, 0.0], [0.1, 0.7], [0.0, math.nan]], "text", 16384),
        scores_of(
            [[0.0, 0.0], [0.3, 0.3], [0.6, 0.0]], "image", 16384, recall_at_1=[[0.0, 0.0], [0.5, 0.25], [1.0, 0]]
        ),
    ]
)
