"""Rank documents by the attention that a vision-language model's retrieval heads pay their pages."""

from haystack_integrations.components.rankers.mmrh.ranker import MMRHRanker

__all__ = ["MMRHRanker"]
