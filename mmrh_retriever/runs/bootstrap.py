"""How sure one can be of a mean and of a difference: bootstrap over questions, or over what they belong to."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from mmrh_retriever.errors import DataError

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """How much one run is above another on the same questions, with interval and two-sided p."""

    difference: float
    low: float
    high: float
    p: float


def bootstrap_interval(
    values: npt.ArrayLike,
    *,
    domains: Sequence[str] | None = None,
    clusters: Sequence[Hashable] | None = None,
    samples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of the mean of one measure, ``(questions,)`` (Efron 1979), that covers ``level``.

    Given the questions' ``domains``, the mean is the macro one and domains are resampled each for itself. Given
    ``clusters``, such as the questions' documents, these are drawn instead of questions: questions of one document
    share its pages, so the wider interval is the more honest one. The same ``seed`` gives the same interval.

    Raises:
        DataError: no values, or lists of different lengths.
    """
    mean, drawn = _resample(_flat(values), domains, clusters, samples, seed)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def paired_bootstrap(
    ours: npt.ArrayLike,
    theirs: npt.ArrayLike,
    *,
    domains: Sequence[str] | None = None,
    clusters: Sequence[Hashable] | None = None,
    samples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """Paired bootstrap test of two runs on the same questions.

    The test of Sakai 2006, "Evaluating evaluation metrics based on the bootstrap". ``p`` is the share of resamples
    whose difference, centred on zero, is at least as far from zero as the one observed, with one added above and
    below (Davison and Hinkley 1997), so it is never 0. Arguments as in :func:`bootstrap_interval`; ``ours`` and
    ``theirs`` are in the same order of questions.

    Raises:
        DataError: no values, or lists of different lengths.
    """
    first, second = _flat(ours), _flat(theirs)
    if first.shape != second.shape:
        raise DataError(f"Paired runs need the same questions, got {first.size} and {second.size} values.")
    difference, drawn = _resample(first - second, domains, clusters, samples, seed)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    # A hair of tolerance: sums of the same values in another order differ in the last bits.
    further = int(np.sum(np.abs(drawn - difference) >= abs(difference) - 1e-12))
    return PairedDifference(difference, float(low), float(high), (further + 1) / (samples + 1))


def _flat(values: npt.ArrayLike) -> Values:
    return np.asarray(values, dtype=np.float64).reshape(-1)


def _resample(
    values: Values, domains: Sequence[str] | None, clusters: Sequence[Hashable] | None, samples: int, seed: int
) -> tuple[float, Values]:
    """The mean of the values, and that of each resample, ``(samples,)``."""
    strata = np.zeros(values.size, dtype=np.intp) if domains is None else _codes(domains)
    units = np.arange(values.size) if clusters is None else _codes(clusters)
    if not values.size or strata.size != values.size or units.size != values.size:
        raise DataError(
            f"Expected one value, domain and cluster per question, got {values.size}, {strata.size} and {units.size}."
        )
    inside = [strata == stratum for stratum in np.unique(strata)]
    members = [np.unique(units[chosen], return_inverse=True)[1] for chosen in inside]
    weights = _draws(tuple(int(codes.max()) + 1 for codes in members), samples, seed)
    drawn = np.zeros(samples, dtype=np.float64)
    for chosen, codes, weight in zip(inside, members, weights, strict=True):
        sums = np.bincount(codes, weights=values[chosen])  # (units,)
        sizes = np.bincount(codes).astype(np.float64)  # (units,)
        drawn += (weight @ sums) / (weight @ sizes) / len(inside)
    return float(np.mean([values[chosen].mean() for chosen in inside])), drawn


@lru_cache(maxsize=2)
def _draws(units: tuple[int, ...], samples: int, seed: int) -> list[Values]:
    """How often each unit is drawn in each resample, ``(samples, units)`` per stratum; kept for the next measure."""
    rng = np.random.default_rng(seed)
    return [rng.multinomial(count, np.full(count, 1 / count), size=samples).astype(np.float64) for count in units]


def _codes(labels: Sequence[Hashable]) -> npt.NDArray[np.intp]:
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return np.array([numbers[label] for label in labels], dtype=np.intp)
