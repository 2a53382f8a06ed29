"""Moved to :mod:`mmrh_retriever.explain.html_report`; this import path goes on working."""

from mmrh_retriever.explain.html_report import *  # noqa: F403
