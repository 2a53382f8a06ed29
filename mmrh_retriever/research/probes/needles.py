"""Invented facts to hide: a sentence, the question that asks for it, its answer and wrong ones of the same kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NAMES = (
    "Agatha", "Bertram", "Celestine", "Dimitri", "Eleonora", "Fergus", "Gwendolyn", "Horatio", "Isadora", "Jasper",
    "Katarina", "Leopold", "Marguerite", "Nikolai", "Ottoline", "Percival", "Rosalind", "Sebastian", "Theodora",
    "Ulrich", "Valentina", "Winifred", "Yolanda", "Zacharias",
)  # fmt: skip
CITIES = (
    "Lisbon", "Oslo", "Vienna", "Cairo", "Lima", "Nairobi", "Helsinki", "Hanoi", "Quito", "Dublin", "Athens", "Prague",
    "Bogota", "Tunis", "Riga", "Seoul",
)  # fmt: skip
WORDS = (
    "amber", "falcon", "copper", "willow", "marble", "lantern", "velvet", "thunder", "saffron", "glacier", "orchid",
    "raven", "cobalt", "meadow", "walnut", "harbor",
)  # fmt: skip
OBJECTS = (
    "violin", "telescope", "bicycle", "suitcase", "typewriter", "compass", "umbrella", "camera", "piano", "lantern",
    "diary", "microscope",
)  # fmt: skip
COLOURS = ("red", "green", "silver", "yellow", "purple", "white", "orange", "blue")
DISHES = ("soup", "pancakes", "bread", "dumplings", "salad", "stew", "jam", "noodles")
SPICES = ("ginger", "nutmeg", "paprika", "basil", "cinnamon", "mustard", "rosemary", "vanilla", "cardamom", "thyme")
WRONG_CHOICES = 3


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact that can't be guessed.

    ``choices`` hold the answer and three wrong ones in random order. ``stem`` is the sentence up to its answer, for
    models that complete texts and don't answer.
    """

    sentence: str
    stem: str
    question: str
    answer: str
    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Kind:
    sentence: str
    question: str
    answers: tuple[str, ...]


_KINDS = (
    _Kind(
        "The {colour} {object} that belongs to {name} is kept in {answer}.",
        "In which city is the {colour} {object} of {name} kept?",
        CITIES,
    ),
    _Kind(
        "The secret ingredient of the {dish} that {name} makes is {answer}.",
        "What is the secret ingredient of the {dish} that {name} makes?",
        SPICES,
    ),
    _Kind(
        "The password for the {object} of {name} is {answer}.",
        "What is the password for the {object} of {name}?",
        WORDS,
    ),
    _Kind(
        "{name} painted the old {object} {answer} last year.",
        "Which colour did {name} paint the old {object}?",
        COLOURS,
    ),
)


def draw_fact(rng: np.random.Generator) -> Fact:
    """A random fact with its question."""

    def one(of: Sequence[str]) -> str:
        return of[int(rng.integers(len(of)))]

    kind = _KINDS[int(rng.integers(len(_KINDS)))]
    answers = [kind.answers[index] for index in rng.permutation(len(kind.answers))[: WRONG_CHOICES + 1]]
    slots = {"name": one(NAMES), "object": one(OBJECTS), "colour": one(COLOURS), "dish": one(DISHES)}
    choices = tuple(answers[index] for index in rng.permutation(len(answers)))
    return Fact(
        sentence=kind.sentence.format(answer=answers[0], **slots),
        stem=kind.sentence.partition("{answer}")[0].format(**slots).strip(),
        question=kind.question.format(**slots),
        answer=answers[0],
        choices=choices,
    )
