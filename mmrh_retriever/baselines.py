"""Moved to :mod:`mmrh_retriever.evaluation.rankers`; this import path goes on working."""

from mmrh_retriever.evaluation.rankers import *  # noqa: F403
