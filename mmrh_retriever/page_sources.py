"""Moved to :mod:`mmrh_retriever.adapters`; this import path goes on working."""

from mmrh_retriever.adapters.clues import *  # noqa: F403
from mmrh_retriever.adapters.page_sources import *  # noqa: F403
