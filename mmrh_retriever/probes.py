"""Moved to :mod:`mmrh_retriever.research.probes.builder`; this import path goes on working."""

from mmrh_retriever.research.probes.builder import *  # noqa: F403
