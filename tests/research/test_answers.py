"""Is an answer right?"""

from __future__ import annotations

import pytest

from mmrh_retriever.errors import DataError
from mmrh_retriever.research.answers import chosen, measure, normalised


@pytest.mark.parametrize(
    ("given", "accepted", "exact", "contains"),
    [
        ("The Harbour.", "harbour", 1, 1),
        ("It is kept in Lisbon, I think", "Lisbon", 0, 1),
        ("Lisbonne", "Lisbon", 0, 0),
        ("1,234.5 tons", "1234.5", 0, 1),
        ("-5%", "5%", 0, 0),
        ("", "Lisbon", 0, 0),
        ("two", ["three", "two"], 1, 1),
        ("in 21 of 214 cases", "14", 0, 0),
    ],
)
def test_exact_and_contained_answers(given: str, accepted: str, exact: int, contains: int) -> None:
    found = measure(given, accepted)
    assert (found.exact, found.contains) == (exact, contains)


def test_anls_forgives_small_slips_only() -> None:
    assert measure("Lisbonn", "Lisbon").anls == pytest.approx(6 / 7)
    assert measure("Oslo", "Lisbon").anls == 0.0
    assert measure("it is in lisbonn today", "Lisbon").fuzzy == pytest.approx(6 / 7)


def test_nothing_accepted_is_refused() -> None:
    with pytest.raises(DataError, match="no accepted answer"):
        measure("a", [])


@pytest.mark.parametrize(
    ("given", "choices", "found"),
    [
        ("Answer: B.", "ABCD", "B"),
        ("A picture of b", "BCD", None),
        ("Yes, it was", ("yes", "no"), "yes"),
        ("Not sure", ("yes", "no"), None),
        ("copper, not amber", ("amber", "copper"), "copper"),
    ],
)
def test_choices_are_read_from_free_answers(given: str, choices: tuple[str, ...], found: str | None) -> None:
    assert chosen(given, tuple(choices)) == found


def test_normalised_keeps_a_lone_article() -> None:
    assert normalised("The") == ("the",)
