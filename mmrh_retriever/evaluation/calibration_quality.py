"""How good probabilities are: do they tell lists with an answer from lists without, and are they true shares?

    probabilities = left_out(asked)                      # each document under a calibration learned from the others
    quality(asked, probabilities).auc

What a list says is its highest probability. Intervals are 95 % percentile bootstraps that draw whole documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from mmrh_retriever.errors import DataError
from mmrh_retriever.evaluation.calibrating import AskedList, fit
from mmrh_retriever.ranking.calibration import Values, probabilities
from mmrh_retriever.runs.bootstrap import Interval

KEPT = 0.9
"""The share of lists with an answer that a threshold keeps."""
_SAMPLES = 2_000


@dataclass(frozen=True, slots=True)
class Quality:
    """What probabilities of whole lists are worth.

    ``auc`` is the area under the ROC curve of lists with an answer against lists without: the chance that the one says
    more than the other. ``false_answers`` is the share of lists without an answer that pass the threshold which
    :data:`KEPT` of the others pass. ``first_auc`` is the area for pages ranked first, in lists of both kinds: those
    that are evidence against those that are not. ``expected`` is the mean probability of the pages ranked first,
    ``found`` the share of them that are evidence, ``brier`` the mean squared difference of both.
    """

    auc: Interval
    false_answers: Interval
    first_auc: Interval
    expected: float
    found: Interval
    brier: float


def left_out(asked: Sequence[AskedList]) -> list[Values]:
    """Each list's probabilities ``(pages,)``, learned from the lists of all other documents.

    Raises:
        DataError: there is one document only, or the others don't teach what a document needs.
    """
    names = {one.document for one in asked}
    if len(names) < 2:
        raise DataError(f"Leaving one document out needs two or more, got {len(names)}.")
    functions = {name: fit([one for one in asked if one.document != name]) for name in names}
    given = [probabilities(*functions[one.document], one.attention, one.text) for one in asked]
    if alone := next((one.document for one, own in zip(asked, given, strict=True) if np.isnan(own).any()), None):
        raise DataError(f"Of all documents, {alone} alone has pages with a text layer. Expected two or more that do.")
    return given


def quality(asked: Sequence[AskedList], given: Sequence[Values]) -> Quality:
    """The worth of probabilities, ``(pages,)`` per list, over the lists that are whole.

    Raises:
        DataError: no whole list with an answer, or none without.
    """
    whole = [(one, values) for one, values in zip(asked, given, strict=True) if one.whole]
    said = np.array([values.max() for _, values in whole])
    answered = np.array([one.has_answer for one, _ in whole], dtype=bool)
    if answered.all() or not answered.any():
        raise DataError(
            f"{int(answered.sum())} of {len(answered)} lists hold an answer. Expected some with, some without."
        )
    documents = np.unique([one.document for one, _ in whole], return_inverse=True)[1]
    first = np.array([values[one.best] for one, values in whole])
    right = np.array([one.gold[one.best] for one, _ in whole], dtype=float)
    members = [np.flatnonzero(documents == number) for number in range(documents.max() + 1)]
    rng = np.random.default_rng(0)

    def figures(drawn: npt.NDArray[np.intp]) -> tuple[float, float, float, float]:
        some, with_answer, shares = said[drawn], answered[drawn], right[drawn]
        told_apart = _auc(some, with_answer), _passing(some, with_answer)
        return *told_apart, _auc(first[drawn], shares.astype(bool)), float(shares.mean())

    draws = []
    for _ in range(_SAMPLES):
        drawn = np.concatenate([members[number] for number in rng.integers(0, len(members), len(members))])
        draws.append(figures(drawn))
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    means = figures(np.arange(len(said)))
    auc, passing, first_auc, found = (Interval(*map(float, one)) for one in zip(means, low, high, strict=True))
    brier = float(((first - right) ** 2).mean())
    return Quality(auc, passing, first_auc, float(first.mean()), found, brier)


def _auc(said: Values, answered: npt.NDArray[np.bool_]) -> float:
    """Mann and Whitney's statistic as a share; equals count half. 0.5 if there is one kind only."""
    if answered.all() or not answered.any():
        return 0.5
    ranks = rankdata(said)[answered]
    with_answer, without = len(ranks), len(said) - len(ranks)
    return float((ranks.sum() - with_answer * (with_answer + 1) / 2) / (with_answer * without))


def _passing(said: Values, answered: npt.NDArray[np.bool_]) -> float:
    """The share of lists without an answer at or above the threshold that keeps :data:`KEPT` of those with one.

    1 if there is one kind only.
    """
    if answered.all() or not answered.any():
        return 1.0
    kept = np.sort(said[answered])
    threshold = kept[int((1 - KEPT) * len(kept) + 1e-9)]
    return float((said[~answered] >= threshold).mean())
