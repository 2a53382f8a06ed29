"""Rerank page images with the multimodal retrieval heads of a vision-language model."""
