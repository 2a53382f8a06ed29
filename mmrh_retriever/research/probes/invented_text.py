"""Invented text, put together from lists of words: prose for haystacks, and facts to hide in them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

_WORDS: dict[str, Any] = json.loads(files("mmrh_retriever").joinpath("data", "probe_words.json").read_text("utf-8"))


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact that can't be guessed.

    ``choices`` hold the answer and three wrong ones of its kind in random order. ``stem`` is the sentence up to its
    answer, for models that complete texts and don't answer.
    """

    sentence: str
    stem: str
    question: str
    answer: str
    choices: tuple[str, ...]


def draw_fact(rng: np.random.Generator) -> Fact:
    """A random fact with its question."""
    kind = _WORDS["facts"][int(rng.integers(len(_WORDS["facts"])))]
    answers = _shuffled(_WORDS[kind["answers"]], rng)[:4]
    words = {name: _one(name, rng) for name in ("name", "object", "colour", "dish")}
    return Fact(
        sentence=kind["sentence"].format(answer=answers[0], **words),
        stem=kind["sentence"].partition("{answer}")[0].format(**words).strip(),
        question=kind["question"].format(**words),
        answer=answers[0],
        choices=tuple(_shuffled(answers, rng)),
    )


def draw_prose(rng: np.random.Generator, count: int = 8) -> str:
    """A passage of random sentences."""
    parts = ("subject", "verb", "thing", "closing")
    return " ".join(" ".join(_one(name, rng) for name in parts) + "." for _ in range(count))


def _one(name: str, rng: np.random.Generator) -> str:
    """A word of a list."""
    words: list[str] = _WORDS[name]
    return words[int(rng.integers(len(words)))]


def _shuffled(words: list[str], rng: np.random.Generator) -> list[str]:
    return [words[index] for index in rng.permutation(len(words))]
