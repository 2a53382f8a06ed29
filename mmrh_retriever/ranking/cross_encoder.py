"""Scores of pairs of a question and a document, in the shape that users of cross-encoders expect.

A cross-encoder scores each pair by itself. Here a question's documents are compared with one another, within windows.
So pairs are put together by their question, wherever they stand in the list, and a question's scores say how its
documents compare in this one call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from mmrh_retriever.errors import PageError, QuestionError, SettingsError
from mmrh_retriever.ranking.inputs import as_page
from mmrh_retriever.settings import check_top_n
from mmrh_retriever.types import Page, ScoredPage

if TYPE_CHECKING:
    from mmrh_retriever.ranking.reranker import Reranker

PairDocument = str | Image.Image | bytes | Path | Page | Mapping[str, Any]
"""A text, an image, the bytes or the path of an image, a page, or a mapping with ``text``, ``image`` or both.

A ``str`` is a text, as for other cross-encoders; where pages are ranked, it is the path of an image.
"""
Pair = Sequence[Any]
"""A question and a :data:`PairDocument`."""

_WORDING = "The prompt's wording is a setting of the reranker: options=PromptOptions(instruction=...)."
_PLACEMENT = "The model runs where it was loaded: Reranker.from_pretrained(..., device=...)."
_ELSEWHERE = {
    "prompt": _WORDING,
    "prompt_name": _WORDING,
    "device": _PLACEMENT,
    "pool": _PLACEMENT,
    "chunk_size": _PLACEMENT,
    "processing_kwargs": "Images are scaled by max_pixels=, a setting of the reranker.",
}
"""Arguments of sentence-transformers' ``predict`` and ``rank`` that are not taken, and what to do instead."""


def pair_scores(reranker: Reranker, pairs: Iterable[Pair], *, progress: bool = False) -> list[float]:
    """Scores of pairs in their order, higher is better.

    A question's scores sort its documents as :meth:`~mmrh_retriever.Reranker.rank` does. Those of two questions, or of
    two calls, do not compare. Questions about the same documents run together, and a document that a question has
    several times is read once: one text, or one object.

    Raises:
        QuestionError: pairs that are none, or a question that is empty or no text.
        PageError: a document that can't be read, or is a text without words.
        ContextOverflowError: a document or question too long.
    """
    listed = _checked(pairs)
    asked: dict[str, dict[Hashable, int]] = {}  # the first pair of each document, by question
    for index, (question, document) in enumerate(listed):
        asked.setdefault(question, {}).setdefault(_key(document), index)
    alike: dict[tuple[Hashable, ...], list[str]] = {}
    for question, documents in asked.items():
        alike.setdefault(tuple(documents), []).append(question)
    scores: dict[tuple[str, Hashable], float] = {}
    for keys, questions in alike.items():
        first = asked[questions[0]]
        pages = [_page(listed[first[key]][1], position, first[key]) for position, key in enumerate(keys)]
        for question, ranking in zip(questions, reranker.rank_many(questions, pages, progress=progress), strict=True):
            for scored, score in zip(ranking, _falling(ranking), strict=True):
                scores[question, keys[scored.position]] = float(score)
    return [scores[question, _key(document)] for question, document in listed]


class CrossEncoderView:
    """A reranker with the methods of sentence-transformers' ``CrossEncoder``, made by ``Reranker.as_cross_encoder()``.

    Scores are the reranker's, without an activation unless one is given. They compare the documents of one question
    within one call (:func:`pair_scores`), so give all of a question's documents at once. ``batch_size`` is taken and
    has no effect: windows are cut by tokens.
    """

    num_labels = 1

    def __init__(self, reranker: Reranker) -> None:
        self.reranker = reranker

    def predict(
        self,
        inputs: Sequence[Pair] | Pair,
        *,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[torch.Tensor], torch.Tensor] | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        **elsewhere: Any,
    ) -> Any:
        """Scores of pairs in their order, ``(pairs,)`` float32, or of a single pair.

        An array, a tensor with ``convert_to_tensor``, or a list of tensors without ``convert_to_numpy``.
        ``apply_softmax`` has no effect on one score per pair, as in sentence-transformers.

        Raises:
            SettingsError: an argument that has its place elsewhere (``prompt``, ``device`` and so on).

        Further errors are those of :func:`pair_scores`.
        """
        del batch_size, apply_softmax
        _refuse(elsewhere)
        single = _is_pair(inputs)
        found = self._scores([inputs] if single else inputs, show_progress_bar, activation_fn).float()
        if convert_to_numpy and not convert_to_tensor:
            return found.numpy()[0] if single else found.numpy()
        kept = found if convert_to_tensor else list(found)
        return kept[0] if single else kept

    def rank(
        self,
        query: str,
        documents: Sequence[PairDocument],
        top_k: int | None = None,
        return_documents: bool = False,
        *,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[torch.Tensor], torch.Tensor] | None = None,
        **elsewhere: Any,
    ) -> list[dict[str, Any]]:
        """A question's documents, best first: ``corpus_id`` (the index), ``score``, and ``text`` if asked for.

        ``text`` is the document as it was given, an image too. Equals keep their order. Errors are those of
        :meth:`predict`.
        """
        del batch_size
        _refuse(elsewhere)
        check_top_n(top_k, "top_k")
        documents = list(documents)
        scores = self._scores([(query, document) for document in documents], show_progress_bar, activation_fn).tolist()
        order = sorted(range(len(documents)), key=lambda index: -scores[index])[:top_k]
        return [
            {"corpus_id": index, "score": scores[index], **({"text": documents[index]} if return_documents else {})}
            for index in order
        ]

    def _scores(
        self, pairs: Any, progress: bool | None, activation: Callable[[torch.Tensor], torch.Tensor] | None
    ) -> torch.Tensor:
        scores = torch.tensor(pair_scores(self.reranker, pairs, progress=bool(progress)), dtype=torch.float64)
        return scores if activation is None else activation(scores)


def _is_pair(given: Any) -> bool:
    """Whether something is one pair, and no list of pairs."""
    if isinstance(given, np.ndarray):
        return given.ndim == 1 and len(given) > 0 and isinstance(given[0], str)
    return isinstance(given, (tuple, list)) and len(given) > 0 and not isinstance(given[0], (tuple, list, np.ndarray))


def _checked(pairs: Iterable[Pair]) -> list[tuple[str, PairDocument]]:
    """The caller's pairs as a list of tuples."""
    if isinstance(pairs, (str, bytes, Mapping)) or not isinstance(pairs, Iterable):
        raise QuestionError(f"Expected a list of pairs of a question and a document, got a {type(pairs).__name__}.")
    listed = []
    for number, pair in enumerate(pairs, start=1):
        if isinstance(pair, (str, bytes, Mapping)) or not isinstance(pair, Iterable) or len(both := list(pair)) != 2:
            got = f"of {len(both)}" if isinstance(pair, (tuple, list)) else f"that is a {type(pair).__name__}"
            raise QuestionError(f"Pair {number} is one {got}. Expected a question and a document.")
        question, document = both
        if isinstance(question, Mapping) and question.keys() == {"text"}:
            question = question["text"]
        if not isinstance(question, str):
            problem = f"The question of pair {number} is a {type(question).__name__}"
            raise QuestionError(f"{problem}. Expected text: pages are ranked by what its words attend to.")
        listed.append((str(question), document))
    return listed


def _key(document: PairDocument) -> Hashable:
    """Equal for documents that are read once: the same text, file or bytes, or one object."""
    return (type(document), document) if isinstance(document, (str, bytes, Path)) else id(document)


def _page(document: PairDocument, position: int, pair: int) -> Page:
    """The page of a document that is at a position of its question's list."""
    try:
        if isinstance(document, str):
            return Page(text=str(document), index=position)
        if not isinstance(document, Mapping):
            return as_page(document, position)
        _check_keys(document)
        return Page(image=document.get("image"), text=document.get("text"), index=position)
    except PageError as error:
        raise PageError(f"The document of pair {pair + 1} can't be scored: {error}", source=error.source) from error


def _check_keys(document: Mapping[str, Any]) -> None:
    if not document or document.keys() - {"text", "image"}:
        got = ", ".join(map(str, document)) or "none"
        raise PageError(f"a mapping has text, image or both; its keys are {got}.")


def _falling(ranking: Sequence[ScoredPage]) -> npt.NDArray[np.float64]:
    """A ranking's scores, none above the one before it.

    Those of a final round are not on the scale of the windows' own. Where the first page behind it has a higher score,
    it and all behind it are lowered to just below the last of the round, their distances kept.
    """
    scores = np.array([scored.score for scored in ranking], dtype=np.float64)
    rises = np.diff(scores)
    least = 2 * np.spacing(np.float32(np.abs(scores).max(initial=0.0)))  # to be seen in float32
    scores[1:] -= np.cumsum(np.where(rises > 0, rises + least, 0.0))
    return scores


def _refuse(elsewhere: Mapping[str, Any]) -> None:
    """Raise for arguments that are unknown, or have their place elsewhere; left at ``None`` they say nothing."""
    for name, value in elsewhere.items():
        if name not in _ELSEWHERE:
            raise TypeError(f"There is no argument {name!r}. Not taken, beside it, are {', '.join(_ELSEWHERE)}.")
        if value is not None:
            raise SettingsError(f"{name}= is not taken here, got {value!r}. {_ELSEWHERE[name]}")
