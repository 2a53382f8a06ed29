"""Is an answer right? Pure text measures: exact match, containment, and the edit distance measures of document QA."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein

from mmrh_retriever.errors import DataError

ANLS_THRESHOLD = 0.5  # answers less alike than this count as wrong in ANLS
_ARTICLES = frozenset({"a", "an", "the"})


@dataclass(frozen=True, slots=True)
class AnswerMeasures:
    """How right an answer is, each from 0 to 1; the best over the accepted answers.

    ``exact``: the same words. ``contains``: the accepted answer's words stand in it in a row. ``anls``: one minus the
    normalised Levenshtein distance, 0 below a half (Biten et al. 2019, arXiv 1905.13648). ``fuzzy``: the same without
    the threshold, against the best part of the answer of the accepted one's length in words.
    """

    exact: float
    contains: float
    anls: float
    fuzzy: float


def measure(given: str, accepted: str | Iterable[str]) -> AnswerMeasures:
    """Compare a given answer with the accepted ones, whatever their case, punctuation and articles."""
    answers = [accepted] if isinstance(accepted, str) else list(accepted)
    if not answers:
        raise DataError("There is no accepted answer to compare with. Give at least one.")
    words = normalised(given)
    every = [_measure(words, normalised(answer)) for answer in answers]
    return AnswerMeasures(*(max(getattr(one, name) for one in every) for name in AnswerMeasures.__slots__))


def normalised(text: str) -> tuple[str, ...]:
    """Lower-case words without punctuation and articles; figures keep their points and signs."""
    plain = unicodedata.normalize("NFKC", text).lower()
    words = re.findall(r"[+-]?\d[\d.,]*%?|\w+", plain)
    stripped = [word.rstrip(".,") for word in words]
    kept = [re.sub(r"(?<=\d),(?=\d{3})", "", word) for word in stripped if word and word not in _ARTICLES]
    return tuple(kept) or tuple(stripped)


def _measure(given: tuple[str, ...], accepted: tuple[str, ...]) -> AnswerMeasures:
    size = max(1, len(accepted))
    stretches = [given[start : start + size] for start in range(max(1, len(given) - size + 1))]
    whole, wanted = " ".join(given), " ".join(accepted)
    alike = Levenshtein.normalized_similarity(whole, wanted)
    return AnswerMeasures(
        exact=float(given == accepted),
        contains=float(bool(accepted) and accepted in stretches),
        anls=alike if alike >= ANLS_THRESHOLD else 0.0,
        fuzzy=max(Levenshtein.normalized_similarity(" ".join(stretch), wanted) for stretch in stretches),
    )


def chosen(given: str, choices: Sequence[str]) -> str | None:
    """Which of the choices a free answer names first, or ``None`` where it names none.

    Single letters must stand alone and be capital ("B", "B.", "Answer: B"); other choices match by their words.
    """
    if all(re.fullmatch("[A-Z]", choice) for choice in choices):
        letters = re.search(rf"\b([{''.join(choices)}])\b", given)
        return letters[1] if letters else None
    words = normalised(given)
    first: dict[str, int] = {}
    for choice in choices:
        wanted = normalised(choice)
        starts = [start for start in range(len(words)) if words[start : start + len(wanted)] == wanted]
        if starts and wanted:
            first[choice] = starts[0]
    return min(first, key=lambda choice: (first[choice], -len(choice))) if first else None
