"""Which heads are chosen: the best by their scores, or random ones as a control."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mmrh_retriever.errors import HeadSetError
from mmrh_retriever.heads.scores import HeadId, HeadScores

PAPER_SHARE = 0.05
"""The paper's share of all heads of a model that count as its retrieval heads."""


def best_heads(
    scores: HeadScores, share: float | None, count: int | None, max_layer: int | None, exclude: Iterable[HeadId]
) -> tuple[HeadId, ...]:
    """The heads with the highest scores, best first; see :meth:`HeadSet.top` for the arguments.

    Raises:
        HeadSetError: fewer heads can be selected than are asked for.
    """
    total = scores.n_layers * scores.n_heads
    if share is not None and count is not None:
        raise HeadSetError(f"Give share or count, not both; got share={share} and count={count}.")
    wanted = _share_of(total, PAPER_SHARE if share is None else share) if count is None else count
    mask = scores.selectable(max_layer)  # (layers, heads)
    for head in exclude:
        mask[head] = False
    eligible = int(mask.sum())
    if not 1 <= wanted <= eligible:
        limit = "" if max_layer is None else f" up to layer {max_layer}"
        advice = "" if max_layer is None else ", or raise max_layer"
        raise HeadSetError(
            f"{wanted} heads asked of {scores.model_id}; {eligible} of its {total} heads have a valid score in a "
            f"selectable layer{limit}. Ask for 1 to {eligible}{advice}."
        )
    worst_last = np.where(mask, -scores.values, np.inf).ravel()
    order = np.argsort(worst_last, kind="stable")[:wanted]  # ties: layer, then head
    return tuple(HeadId(*divmod(int(i), scores.n_heads)) for i in order)


def random_heads(pool: Sequence[HeadId], wanted: Mapping[int | None, int], seed: int) -> tuple[HeadId, ...]:
    """``wanted[layer]`` random heads of each layer from ``pool``, by layer and head; ``None`` is any layer.

    Raises:
        HeadSetError: too few heads to draw from.
    """
    random = np.random.default_rng(seed)
    drawn: list[HeadId] = []
    for layer, count in wanted.items():
        left = [head for head in pool if layer is None or head.layer == layer]
        if not 1 <= count <= len(left):
            where = "the model" if layer is None else f"layer {layer}"
            raise HeadSetError(
                f"{count} random heads asked of {where}, {len(left)} to draw from. Ask for 1 to {len(left)}, "
                "or pass disjoint=False."
            )
        drawn.extend(left[int(i)] for i in random.choice(len(left), size=count, replace=False))
    return tuple(sorted(drawn))


def _share_of(total: int, share: float) -> int:
    """``ceil(share * total)``, safe against rounding: 7 % of 100 is 7, though 0.07 * 100 > 7."""
    if not 0.0 < share <= 1.0:
        raise HeadSetError(f"A share of heads lies above 0 and is at most 1, got {share}. 5 % is 0.05.")
    return math.ceil(share * total - 1e-9)
