"""Calibration: the probability that a page is evidence for the question, from what it scored.

The event, for each page by itself: *this page holds evidence that answers the question*. Several pages of a list may
have a high probability, or none: probabilities do not sum to 1. They hold for questions and lists like those they were
learned from, where half of the lists hold the answer.

What counts of a page is its attention score, and how far it is above the best other page's (or below). A page with a
text layer in a list that is ranked with it (hybrid) brings two more: its BM25 score, and how far that is above the best
other's. A list of one page is compared with a score of 0: what a null question pays a page. A page's position does not
count. The logistic function of their weighted sum is the probability (Platt 1999).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator
from scipy.special import expit

from mmrh_retriever.errors import SettingsError
from mmrh_retriever.files import FileModel, Finite, is_file, read_json, write_json
from mmrh_retriever.heads.sets import HeadSet, same_model

logger = logging.getLogger(__name__)

CALIBRATION_FILE = "mmrh_calibration.json"
"""A calibration beside a local model's weights; ``calibration="auto"`` takes it if it holds."""
ATTENTION = ("attention", "attention_margin")
"""What counts of a page by its image alone, in the order of the columns of :func:`features`."""
HYBRID = (*ATTENTION, "text", "text_margin")
"""The same for a page with a text layer, in a list that is ranked with it."""

Values = npt.NDArray[np.float64]


class Logistic(FileModel):
    """A logistic function of what counts of a page: an intercept, and a weight by name."""

    intercept: Finite
    weights: dict[str, Finite]

    def __call__(self, columns: Values) -> Values:
        """Probabilities ``(pages,)`` from ``(pages, weights)``."""
        found: Values = expit(self.intercept + columns @ np.array([*self.weights.values()]))
        return found


class Calibration(FileModel):
    """A learned calibration, and what it holds for: one model, its heads and the settings that change scores.

    ``attention`` serves lists ranked by images alone, and pages without a text layer. ``hybrid`` serves pages with one
    in lists that are ranked with it; without it these have no probability. ``source`` says what it was learned from.
    """

    format: Literal["mmrh-calibration"] = "mmrh-calibration"
    version: Literal[1] = 1
    model: str
    heads: Annotated[list[str], Field(min_length=1)]
    settings: dict[str, Any]
    source: str
    attention: Logistic
    hybrid: Logistic | None = None

    @field_validator("attention", "hybrid")
    @classmethod
    def _known(cls, value: Logistic | None, info: Any) -> Logistic | None:
        expected = ATTENTION if info.field_name == "attention" else HYBRID
        if value is not None and tuple(value.weights) != expected:
            raise ValueError(f"expected weights of {', '.join(expected)}, got {', '.join(value.weights) or 'none'}")
        return value

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """A calibration from its file; a :class:`DataError` if it is none."""
        return read_json(Path(path), cls, what="calibration")

    def save(self, path: str | Path) -> None:
        """Write the calibration as JSON."""
        write_json(Path(path), self)

    def mismatch(self, heads: HeadSet, settings: Mapping[str, Any]) -> str | None:
        """Why the calibration does not hold for heads and settings of its model; ``None`` if it does."""
        names = sorted(map(str, heads))
        if names != sorted(self.heads):
            return f"it was learned for {_some(sorted(self.heads))}, not for {_some(names)}"
        for name in sorted(self.settings.keys() | settings.keys()):
            learned, given = self.settings.get(name), settings.get(name)
            if learned != given:
                return f"it was learned with {name}: {learned!r}, here it is {given!r}"
        return None

    def probabilities(self, attention: Values, text: Values | None) -> Values:
        """Each page's probability, ``(pages,)``, NaN where the calibration has none.

        ``attention`` is ``(pages,)``, and so is ``text``: BM25, NaN for pages without a text layer. It is ``None`` in a
        list that is ranked by images alone.
        """
        return probabilities(self.attention, self.hybrid, attention, text)


def probabilities(attentive: Logistic, hybrid: Logistic | None, attention: Values, text: Values | None) -> Values:
    """What :meth:`Calibration.probabilities` gives, from its two functions."""
    found = attentive(features(attention))
    if text is not None:
        own = ~np.isnan(text)
        found[own] = np.nan if hybrid is None else hybrid(features(attention, text)[own])
    return found


def passing(probabilities: Sequence[float | None], least: float, why_none: str) -> list[bool]:
    """Which pages are evidence with a probability of ``least`` or more; that none is, is logged.

    Raises:
        SettingsError: a page has no probability; ``why_none`` is the reranker's ``uncalibrated``.
    """
    known = [value for value in probabilities if value is not None]
    if len(known) < len(probabilities):
        why = why_none or "the calibration holds none for pages with a text layer; learn it from such pages"
        raise SettingsError(f"min_probability={least} needs a calibration: {why}.")
    if known and max(known) < least:
        logger.warning(
            "None of %d pages is evidence with a probability of %g or more; the most probable has %.2g.",
            len(known), least, max(known),
        )  # fmt: skip
    return [value >= least for value in known]


def features(attention: Values, text: Values | None = None) -> Values:
    """What counts of each page, ``(pages, 2)``, or ``(pages, 4)`` with text, where a page without one counts as 0."""
    columns = [attention, _above_others(attention)]
    if text is not None:
        known = np.nan_to_num(text)
        columns += [known, _above_others(known)]
    return np.stack(columns, axis=1)


def _above_others(values: Values) -> Values:
    """How far each value is above the largest of the others, 0 if there are none; negative where it is below."""
    if len(values) == 1:
        return values
    second, first = np.sort(values)[-2:]
    others = np.full_like(values, first)
    others[values.argmax()] = second
    return values - others


def _some(heads: list[str]) -> str:
    return f"{len(heads)} heads ({', '.join(heads[:5])}{' ...' if len(heads) > 5 else ''})"


def calibration_for(
    given: Calibration | str | Path | None, model: str, heads: HeadSet, settings: Mapping[str, Any]
) -> tuple[Calibration | None, str]:
    """The calibration to use, and if there is none, why.

    ``"auto"`` takes the file beside a local model's weights, if it holds for heads and settings; ``None`` takes none.

    Raises:
        SettingsError: a calibration that was given, and does not hold.
        DataError: a file that is none.
    """
    if given is None:
        return None, "calibration=None was asked for"
    if given == "auto":
        path = Path(model) / CALIBRATION_FILE
        if not is_file(path):
            return None, f"no {CALIBRATION_FILE} stands beside the model; learn one with `mmrh calibrate`"
        found = Calibration.load(path)
        problem = found.mismatch(heads, settings)
        return (found, "") if problem is None else (None, f"{path} does not hold here: {problem}")
    found = given if isinstance(given, Calibration) else Calibration.load(given)
    problem = found.mismatch(heads, settings)
    if not same_model(model, found.model):
        problem = f"it was learned for the model {found.model}, not for {model}"
    if problem:
        name = "The calibration" if isinstance(given, Calibration) else str(given)
        raise SettingsError(f"{name} does not hold here: {problem}. Learn one for these with `mmrh calibrate`.")
    return found, ""
