"""Trained rerankers as baselines: cross-encoders and embedders of sentence-transformers, over texts or images.

A page's text is read in chunks of words, and the page scores as its best chunk does. As an image it is read whole.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from mmrh_retriever.errors import SettingsError, UnsupportedModelError
from mmrh_retriever.model.loading import refuse_own_code
from mmrh_retriever.ranking.regions import Crops
from mmrh_retriever.types import Page

TrainedKind = Literal["cross-encoder", "sentence-transformer"]
"""``"cross-encoder"`` reads question and page together, ``"sentence-transformer"`` embeds each by itself."""
RankerInput = Literal["text", "image"]
"""What a trained reranker reads of a page or a box: its text, or its image."""
CHUNK_WORDS = 180
"""Words of a page that are read at once, as many as the embedding baseline reads."""
BATCHES = {"text": 32, "image": 4}
"""Chunks or images that run at once."""
OLDEST_MAJOR = 6
"""sentence-transformers before 6 runs the Python code of a model's folder unasked, and before 5.4 reads no images."""

Part = str | Image.Image
Scores = npt.NDArray[np.float64]
_LIKE_AN_ADDRESS = re.compile(r"(https?|data):|.*\.\w{2,5}\Z", re.DOTALL)


class TrainedRanker:
    """A model of sentence-transformers that ranks pages and boxes.

    ``model`` is a loaded ``CrossEncoder`` or ``SentenceTransformer``, as :func:`load_trained` gives it.

    Raises:
        UnsupportedModelError: the model reads no images, or gives several scores for a pair.
    """

    def __init__(self, kind: TrainedKind, model: Any, reads: RankerInput = "text") -> None:
        if reads == "image" and not model.supports("image"):
            known = ", ".join(map(str, model.modalities))
            raise UnsupportedModelError(
                f"This {type(model).__name__} reads {known}, no images. Name one that does, or let it read the text "
                "layer (--baseline-input text)."
            )
        if kind == "cross-encoder" and model.num_labels != 1:
            problem = f"This cross-encoder gives {model.num_labels} scores for a pair"
            raise UnsupportedModelError(f"{problem}. Expected one: name a reranker, not a classifier.")
        self.kind, self.model, self.reads = kind, model, reads

    def rank(self, questions: Sequence[str], pages: Sequence[Page]) -> Scores:
        """Scores of the pages' text layers or images, ``(questions, pages)``; a page without text is below all others.

        Raises:
            PageError: a page without an image, where images are read.
        """
        return self._scores(questions, (_chunks(it.text) if self.reads == "text" else [it.pixels()] for it in pages))

    def rank_regions(self, questions: Sequence[str], pages: Sequence[Page]) -> Scores:
        """Scores of the boxes' texts, or of their images as the layouts have them, else cut out of their pages."""
        if self.reads == "image":
            return self.rank(questions, Crops(pages).pages)
        return self._scores(questions, (_chunks(region.text) for page in pages for region in page.regions))

    def _scores(self, questions: Sequence[str], candidates: Iterable[list[Part]]) -> Scores:
        """``(questions, candidates)``: the best of each candidate's parts, which are not kept."""
        score = self._asked([as_words(question) for question in questions])
        columns = [score(parts).max(axis=1) if parts else np.full(len(questions), np.nan) for parts in candidates]
        scores = np.array(columns, dtype=np.float64).reshape(len(columns), len(questions)).T
        known = scores[~np.isnan(scores)]
        return np.where(np.isnan(scores), known.min(initial=0.0) - 1.0, scores)

    def _asked(self, questions: list[str]) -> Callable[[list[Part]], Scores]:
        """How questions score parts: ``(questions, parts)``."""
        options: dict[str, Any] = {"batch_size": BATCHES[self.reads], "show_progress_bar": False}
        if self.kind == "sentence-transformer":
            asked = self.model.encode_query(questions, convert_to_tensor=True, **options)

            def similar(parts: list[Part]) -> Scores:
                embedded = self.model.encode_document(parts, convert_to_tensor=True, **options)
                return np.asarray(self.model.similarity(asked, embedded).double().cpu(), dtype=np.float64)

            return similar

        def together(parts: list[Part]) -> Scores:
            pairs = [(question, part) for question in questions for part in parts]
            # as they are: a sigmoid would make equals of the best
            scores = self.model.predict(pairs, activation_fn=torch.nn.Identity(), **options)
            return np.asarray(scores, dtype=np.float64).reshape(len(questions), len(parts))

        return together


def _chunks(text: str | None) -> list[Part]:
    words = (text or "").split()
    return [as_words(" ".join(words[start : start + CHUNK_WORDS])) for start in range(0, len(words), CHUNK_WORDS)]


def load_trained(
    kind: TrainedKind, name: str | None, *, device: str | None = None, dtype: str | None = None, own_code: bool = False
) -> Any:
    """A ``CrossEncoder`` or ``SentenceTransformer`` of sentence-transformers, by its hub id or folder.

    ``own_code`` runs Python code that the model brings, with all that this process may do. Only for models whose code
    was read and is trusted.

    Raises:
        ImportError: sentence-transformers is missing, or too old.
        SettingsError: no name.
        UnsupportedModelError: a model that brings code of its own, or that can't be loaded.
    """
    _check_version()
    if not name:
        raise SettingsError(f"Which {kind}? Name it by its hub id or folder, as in {kind}:NAME.")
    import sentence_transformers

    made = sentence_transformers.CrossEncoder if kind == "cross-encoder" else sentence_transformers.SentenceTransformer
    try:
        if not own_code:
            refuse_own_code(name, unless="If you have read that code and trust it, allow it with --baseline-own-code.")
        return made(
            name, device=device, trust_remote_code=own_code, model_kwargs={} if dtype is None else {"dtype": dtype}
        )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        advice = "Name another, or one that brings code with --baseline-own-code, if you trust it."
        raise UnsupportedModelError(f"{name} can't be loaded as a {kind}: {error} {advice}") from error


def _check_version() -> None:
    try:
        found = importlib.metadata.version("sentence-transformers")
    except importlib.metadata.PackageNotFoundError:
        found = None
    if found is None or int(found.split(".")[0]) < OLDEST_MAJOR:
        raise ImportError(
            f"Trained rerankers need sentence-transformers {OLDEST_MAJOR} or newer, found {found or 'none'}: "
            "pip install 'mmrh-retriever[rerankers]'."
        )


def as_words(text: str) -> str:
    """A text that sentence-transformers takes for words: it opens what looks like a picture's path or address."""
    return f" {text} " if _LIKE_AN_ADDRESS.match(text) else text
