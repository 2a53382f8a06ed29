"""Retrieve and rerank documents by the attention that a vision-language model's retrieval heads pay their pages."""

from langchain_mmrh.rerank import MMRHRerank
from langchain_mmrh.retriever import MMRHRetriever

__all__ = ["MMRHRerank", "MMRHRetriever"]
