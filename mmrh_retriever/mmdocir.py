"""Moved to :mod:`mmrh_retriever.evaluation.mmdocir`; this import path goes on working."""

from mmrh_retriever.evaluation.mmdocir import *  # noqa: F403
