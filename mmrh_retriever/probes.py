"""Moved to :mod:`mmrh_retriever.research.probes`; this import path goes on working."""

from mmrh_retriever.research.probes import *  # noqa: F403
