"""The HTTP server: rerank endpoints, files that are asked many questions, metrics."""
