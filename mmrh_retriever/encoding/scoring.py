"""From attention mass to scores: null-question calibration, and the mean over the selected heads."""

from __future__ import annotations

import torch
from torch import Tensor


def calibrated(mass: Tensor, null_mass: Tensor | None) -> Tensor:
    """Null-question calibration: ``S_cal = S(question) - S(null question)``, in [-1, 1].

    Args:
        mass: ``(..., heads, spans)``.
        null_mass: the same for the null question, without the questions' axis; ``None`` leaves ``mass`` as it is.
    """
    return mass if null_mass is None else mass - null_mass


def page_scores(mass: Tensor, null_mass: Tensor | None) -> Tensor:
    """``R(d)``: the mean over the selected heads of the calibrated score, ``(..., spans)`` float64.

    Added up in float64, so that the score does not depend on the order of the heads.
    """
    return calibrated(mass.double(), None if null_mass is None else null_mass.double()).mean(dim=-2)


def descending(scores: Tensor) -> list[int]:
    """Indices of the scores from the highest down; equals keep their order."""
    return torch.sort(scores, descending=True, stable=True).indices.tolist()
