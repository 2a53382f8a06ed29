"""Moved to :mod:`mmrh_retriever.ranking.shared_models`; this import path goes on working."""

from mmrh_retriever.ranking.shared_models import *  # noqa: F403
