"""Rerank nodes by the attention that a vision-language model's retrieval heads pay their pages."""

from llama_index.postprocessor.mmrh_rerank.base import MMRHRerank
from llama_index.postprocessor.mmrh_rerank.retriever import MMRHRetriever

__all__ = ["MMRHRerank", "MMRHRetriever"]
