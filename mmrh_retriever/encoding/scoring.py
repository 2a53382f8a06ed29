"""From attention mass to scores: null-question calibration, and the mean over the selected heads."""

from __future__ import annotations

import torch
from torch import Tensor


def page_scores(mass: Tensor, null_mass: Tensor | None) -> Tensor:
    """``R(d)``: the mean over the selected heads of the calibrated score, ``(..., spans)`` float64.

    ``S_cal = S(question) - S(null question)`` lies in [-1, 1] (Li et al. 2026, arXiv 2605.27243). Both masses are
    ``(..., heads, spans)``. Added up in float64, so that the score does not depend on the order of the heads.
    """
    calibrated = mass.double() if null_mass is None else mass.double() - null_mass.double()
    return calibrated.mean(dim=-2)


def descending(scores: Tensor) -> list[int]:
    """Indices of the scores from the highest down; equals keep their order."""
    return torch.sort(scores, descending=True, stable=True).indices.tolist()
