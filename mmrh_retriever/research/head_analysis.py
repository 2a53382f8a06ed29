"""How retrieval heads are spread: sparsity, overlap, depth, stability. Pure functions on scores and sets.

Definitions follow "Can Retrieval Heads See Images?", Li et al. 2026, arXiv 2605.27243 (*the paper*).
Every function raises ``HeadSetError`` where it is given too little: no head scores above 0, a task or length that was
not scored, too few examples or selectable heads, or sets and tables of different sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmrh_retriever.errors import HeadSetError
from mmrh_retriever.heads.sets import HeadScores, HeadScoresTable, HeadSet

Floats = npt.NDArray[np.float64]


def sparsity(values: npt.ArrayLike, mass: float = 0.5) -> float:
    """The smallest share of all heads that holds ``mass`` of the positive scores: ``rho_q``, above 0 up to 1.

    Definition 5 of the paper: heads are taken from the top, negative mean scores count as 0, and the share is of all
    heads, measured or not. Smaller is sparser.
    """
    if not 0.0 < mass <= 1.0:
        raise HeadSetError(f"The mass to cover lies above 0 and is at most 1, got {mass}.")
    shares, masses = mass_curve(values)
    slack = 1e-12  # so that fourteen heads of 0.1 reach half of their mass with seven and not eight
    return float(shares[np.searchsorted(masses, mass * (1.0 - slack))])


def mass_curve(values: npt.ArrayLike) -> tuple[Floats, Floats]:
    """The share of heads, from the top, and the share of the positive score mass that they hold.

    Both ``(heads + 1,)``, rising from 0 to 1; the curve crosses ``mass`` at :func:`sparsity`.
    """
    positive = np.sort(np.nan_to_num(np.ravel(values), posinf=np.inf).clip(0.0))[::-1]  # (heads,)
    if not positive.size or not 0.0 < positive[0] < np.inf:
        raise HeadSetError(
            f"None of {positive.size} heads has a positive finite score, so there is no mass to share out. "
            "Check the detection run: its probes may be too hard, or question and null question alike."
        )
    running = np.cumsum(positive, dtype=np.float64)
    return np.arange(running.size + 1) / running.size, np.concatenate([[0.0], running / running[-1]])


@dataclass(frozen=True, slots=True, eq=False)
class OverlapMatrix:
    """Overlap of every pair of equal-sized head sets (definition 6 of the paper).

    ``values[i, j]`` is ``|A_i & A_j| / |A_i|``, from 0 to 1, ``(sets, sets)`` and symmetric.
    :func:`chance_overlap` says what to expect of random sets.
    """

    labels: tuple[str, ...]
    values: Floats

    def off_diagonal_mean(self) -> float:
        """The mean over the pairs of different sets; 1 where there is only one set."""
        n = len(self.labels)
        return float((self.values.sum() - np.trace(self.values)) / (n * (n - 1))) if n > 1 else 1.0


def overlap_matrix(sets: Sequence[HeadSet], labels: Iterable[str]) -> OverlapMatrix:
    """Overlaps of head sets with each other."""
    names = tuple(labels)
    if not sets or len(names) != len(sets):
        raise HeadSetError(f"Expected one label per head set and at least one set, got {len(names)} and {len(sets)}.")
    return OverlapMatrix(names, np.array([[one.overlap(other) for other in sets] for one in sets], dtype=np.float64))


def chance_overlap(table: HeadScoresTable, share: float | None = None) -> float:
    """The overlap to expect of two random sets of selectable heads: their size over the number to choose from.

    That is ``share`` where every head can be selected (0.05 for the paper's sets), and more where only some
    layers can: 0.31 for Gemma-3-27B, whose 100 best heads come from 320.
    """
    chosen = HeadSet.top(table.first, share, exclude=table.invalid_heads)
    selectable = table.first.selectable()
    return len(chosen) / (int(selectable.sum()) - sum(bool(selectable[head]) for head in table.invalid_heads))


def task_overlap(table: HeadScoresTable, context_length: int, share: float | None = None) -> OverlapMatrix:
    """Overlaps of the best heads of the tasks that were scored at one context length."""
    best = {task: _best(table, task, length, share) for task, length in table if length == context_length}
    return overlap_matrix(list(best.values()), best)


def length_overlap(table: HeadScoresTable, task: str, share: float | None = None) -> OverlapMatrix:
    """Overlaps of one task's best heads at the context lengths it was scored at."""
    best = {str(length): _best(table, task, length, share) for scored, length in table if scored == task}
    return overlap_matrix(list(best.values()), best)


def _best(table: HeadScoresTable, task: str, context_length: int, share: float | None) -> HeadSet:
    return HeadSet.of_tasks(table, [task], context_length, share=share)


def model_overlap(
    one: HeadScoresTable, other: HeadScoresTable, share: float | None = None
) -> dict[tuple[str, int], float]:
    """Overlap of two models' best heads under every condition that both were scored on.

    Meaningful for copies of one model (quantised, fine-tuned) or two detections on it, with the same head grid.
    """
    if (one.n_layers, one.n_heads) != (other.n_layers, other.n_heads):
        raise HeadSetError(
            f"{one.model_id} has {one.n_layers} x {one.n_heads} heads, {other.model_id} {other.n_layers} x "
            f"{other.n_heads}. Heads can be compared only where the grids are equal."
        )
    common = [condition for condition in one if condition in other]
    if not common:
        raise HeadSetError(
            f"No task and length in common: {one.model_id} has {sorted(one)}, {other.model_id} {sorted(other)}."
        )
    return {condition: _best(one, *condition, share).overlap(_best(other, *condition, share)) for condition in common}


def layer_spread(heads: HeadSet, n_layers: int | None = None) -> npt.NDArray[np.int64]:
    """How many of the heads each layer has: ``(layers,)``."""
    depth = n_layers if n_layers is not None else heads.n_layers
    if depth is None or heads.deepest_layer >= depth:
        raise HeadSetError(f"The deepest head is in layer {heads.deepest_layer}; the number of layers is {depth}.")
    return np.bincount([head.layer for head in heads], minlength=depth).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Stability:
    """Overlaps of head sets chosen from disjoint parts of the detection examples: a value per pair, 0 to 1."""

    overlaps: tuple[float, ...]
    set_size: int

    @property
    def mean(self) -> float:
        """The mean overlap: 1 when the choice of examples doesn't matter."""
        return float(np.mean(self.overlaps))


def stability(
    example_scores: npt.ArrayLike,
    *,
    n_subsets: int = 2,
    share: float | None = None,
    repeats: int = 10,
    seed: int = 0,
    selectable_layers: tuple[int, ...] | None = None,
) -> Stability:
    """How far the best heads depend on which examples they were detected on.

    ``example_scores`` is ``(examples, layers, heads)``: each example's calibrated scores. The examples are shuffled
    ``repeats`` times and cut into ``n_subsets`` disjoint parts of equal size (what is left over sits out); each part
    chooses its best heads, and every pair of parts gives one overlap.
    """
    scores = np.asarray(example_scores, dtype=np.float32)
    if scores.ndim != 3 or n_subsets < 2 or repeats < 1 or len(scores) < n_subsets:
        raise HeadSetError(
            f"Stability needs scores of shape (examples, layers, heads), at least two subsets, an example for "
            f"each and a repeat; got shape {scores.shape}, {n_subsets} subsets and {repeats} repeats."
        )
    random = np.random.default_rng(seed)
    size = len(scores) // n_subsets
    overlaps: list[float] = []
    for _ in range(repeats):
        order = random.permutation(len(scores))
        parts = [scores[order[part * size : (part + 1) * size]].mean(axis=0) for part in range(n_subsets)]
        measured = [HeadScores(part, "examples", "subset", 1, selectable_layers=selectable_layers) for part in parts]
        chosen = [HeadSet.top(part, share) for part in measured]
        overlaps += [one.overlap(other) for one, other in itertools.combinations(chosen, 2)]
    return Stability(tuple(overlaps), len(chosen[0]))
