"""Moved to :mod:`mmrh_retriever.research.causal`; this import path goes on working."""

from mmrh_retriever.research.causal import *  # noqa: F403
