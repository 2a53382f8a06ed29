"""Moved to :mod:`mmrh_retriever.adapters.page_sources`; this import path goes on working."""

from mmrh_retriever.adapters.page_sources import *  # noqa: F403
