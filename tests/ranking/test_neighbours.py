"""Neighbours: beside a hit, never a hit, never twice."""

from __future__ import annotations

from mmrh_retriever.ranking.neighbours import neighbours_of


def test_the_pages_beside_a_hit() -> None:
    hits = [("a", 3), ("b", 0)]
    assert neighbours_of(hits, "next") == [[("a", 4)], [("b", 1)]]
    assert neighbours_of(hits, "previous") == [[("a", 2)], []], "nothing is before the first page"
    assert neighbours_of(hits, "both") == [[("a", 2), ("a", 4)], [("b", 1)]]
    assert neighbours_of(hits, None) == [[], []]
    assert neighbours_of([], "both") == []


def test_hits_are_no_neighbours_and_none_comes_twice() -> None:
    assert neighbours_of([("a", 3), ("a", 4), ("a", 6)], "both") == [[("a", 2)], [("a", 5)], [("a", 7)]]
    assert neighbours_of([("a", 3), ("a", 3)], "next") == [[("a", 4)], []], "two documents of one page"
    assert neighbours_of([("a", 3), ("b", 4)], "next") == [[("a", 4)], [("b", 5)]], "the file counts, too"


def test_a_hit_of_unknown_page_has_none() -> None:
    assert neighbours_of([None, ("a", 0)], "next") == [[], [("a", 1)]]
