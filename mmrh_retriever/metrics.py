"""Moved to :mod:`mmrh_retriever.evaluation.metrics`; this import path goes on working."""

from mmrh_retriever.evaluation.metrics import *  # noqa: F403
from mmrh_retriever.runs.bootstrap import *  # noqa: F403
