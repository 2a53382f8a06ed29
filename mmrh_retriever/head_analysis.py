"""Moved to :mod:`mmrh_retriever.research.head_analysis`; this import path goes on working."""

from mmrh_retriever.research.head_analysis import *  # noqa: F403
