"""Scores, ranks, regions and detection scores are what they were before the code was moved, to 1e-6."""

from __future__ import annotations

import pytest

from tests.golden.record import CASES, compare


@pytest.mark.parametrize("name", list(CASES))
def test_results_are_as_recorded(name: str, record_property) -> None:
    difference, where = compare(name)
    print(f"{name:16} largest difference {difference:.1e} at {where}")
    record_property("largest_difference", difference)
    assert difference <= 1e-6, f"{where} differs by {difference:.1e}"
