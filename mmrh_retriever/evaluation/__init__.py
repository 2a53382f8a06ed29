"""Rankers measured on annotated documents. Every question counts, and a killed run goes on where it stopped."""

from mmrh_retriever.evaluation.evaluate import Evaluation, LocalExecutor, evaluate, read_run, summary_of
from mmrh_retriever.evaluation.run_settings import settings_of

__all__ = ["Evaluation", "LocalExecutor", "evaluate", "read_run", "settings_of", "summary_of"]
