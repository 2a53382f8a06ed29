"""Moved to :mod:`mmrh_retriever.research.detection`; this import path goes on working."""

from mmrh_retriever.research.detection import *  # noqa: F403
