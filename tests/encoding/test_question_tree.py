"""What several questions begin with stands once in their pass."""

from __future__ import annotations

import pytest

from mmrh_retriever.encoding.question_tree import QuestionTree


def tree_of(*sequences: list[int]) -> QuestionTree:
    tree = QuestionTree()
    for sequence in sequences:
        tree.add(sequence)
    return tree


@pytest.mark.parametrize(
    ("sequences", "ids"),
    [
        (([5, 6, 7], [5, 6, 8, 7]), [5, 6, 7, 8, 7]),
        (([5, 6], [6, 5]), [5, 6, 6, 5]),  # the same token behind another one is another
        (([5, 6, 7], [5, 6]), [5, 6, 7]),
        (([5, 6], [5, 6, 7]), [5, 6, 7]),
        (([5, 6], [5, 6]), [5, 6]),
        (([5, 5, 5], [5, 5, 6]), [5, 5, 5, 6]),
        (([1, 2, 3], [4], [1, 2, 5], [1, 6]), [1, 2, 3, 4, 5, 6]),
    ],
)
def test_shared_beginnings_stand_once(sequences: tuple[list[int], ...], ids: list[int]) -> None:
    tree = tree_of(*sequences)
    assert tree.ids == ids
    assert len(tree) == len(ids)
    for sequence, path in zip(sequences, tree.paths, strict=True):
        assert [tree.ids[offset] for offset in path] == sequence
        assert [tree.depths[offset] for offset in path] == list(range(len(sequence)))
        assert list(path) == sorted(path), "a token stands behind those before it"


def test_what_a_sequence_would_add() -> None:
    tree = tree_of([5, 6, 7], [5, 8])
    assert [tree.new_tokens(ids) for ids in ([5, 8, 7], [5, 6], [6, 7], [])] == [1, 0, 2, 0]
    assert len(tree) == 4
