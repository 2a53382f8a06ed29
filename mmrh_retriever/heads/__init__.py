"""Attention heads of a model: scores, sets, files, and the sets that ship. Nothing here knows transformers."""

from mmrh_retriever.heads.published import load_head_set
from mmrh_retriever.heads.scores import HeadId, HeadScores, HeadScoresTable
from mmrh_retriever.heads.sets import HeadSet

__all__ = ["HeadId", "HeadScores", "HeadScoresTable", "HeadSet", "load_head_set"]
