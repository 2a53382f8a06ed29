"""Questions about whole pages, as people ask them: what stands here and there, a table's cell, a heading."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tools.reader.dialogue import as_question, framed, telling_words
from tools.reader.examples import ExampleMaker
from tools.reader.shelf import KeptPage, View

SAME_LINE = 0.25  # cells between the heights of words that stand on one line
LONGEST_HEADING = 8  # words
NEAR_NUMBER = 5  # words to the left of a number, and to its right, that are asked with it
SENTENCES = 0.6  # share of questions that are put into a whole sentence
ELSEWHERE = 0.3  # share of questions with a word that stands on another page
SHARES = (0.5, 0.2, 0.1, 0.2)  # of stage 2's questions, cells, headings and several places


class QuestionMaker:
    """Questions about pages that are shown whole, made of their words."""

    def __init__(self, examples: ExampleMaker) -> None:
        self.examples = examples
        self.rng = examples.shelf.rng

    def questions(self, pages: Sequence[KeptPage], count: int) -> list[tuple[str, int]]:
        """`count` questions, each with the index of the page that it is about."""
        views = [View(page, 0, 0, page.columns, page.rows) for page in pages]
        found: list[tuple[str, int]] = []
        while len(found) < count:
            make = self.rng.choices((self.examples.question, self._cell, self._heading, self._places), SHARES)[0]
            asked = make(views)
            if asked is not None:
                found.append(asked)
        return found

    def _cell(self, views: Sequence[View]) -> tuple[str, int] | None:
        """About a line with a number: the words beside it and above it, mostly without the number."""
        gold = self.rng.randrange(len(views))
        page = views[gold].page
        numbers = [index for index, word in enumerate(page.words) if any(map(str.isdigit, word))]
        if not numbers:
            return None
        number = self.rng.choice(numbers)
        line = next(line for line in lines(page) if number in line)
        near = [index for index in line if 0 < abs(index - number) <= NEAR_NUMBER]
        words = [page.words[index] for index in near]
        if self.rng.random() < 0.25:
            words.append(page.words[number])
        above = column_head(page, number)
        if above is not None and self.rng.random() < 0.5:
            words.append(page.words[above])
        return self._asked(words, views, gold)

    def _heading(self, views: Sequence[View]) -> tuple[str, int] | None:
        """About what a short line without a full stop says."""
        gold = self.rng.randrange(len(views))
        said = [[views[gold].page.words[index] for index in line] for line in lines(views[gold].page)]
        short = [words for words in said if len(words) <= LONGEST_HEADING and words[-1][-1].isalnum()]
        return self._asked(self.rng.choice(short), views, gold) if short else None

    def _places(self, views: Sequence[View]) -> tuple[str, int] | None:
        """About one to three places of a page."""
        gold = self.rng.randrange(len(views))
        places = self.rng.randint(1, 3)
        found = [self.examples.snippet(views[gold], 2, 9 - 2 * places) for _ in range(places)]
        return self._asked([word for snippet in found for word in snippet or ()], views, gold)

    def _asked(self, words: Sequence[str], views: Sequence[View], gold: int) -> tuple[str, int] | None:
        """The words as a question; None where they say too little."""
        rng, common = self.rng, self.examples.common
        telling = [bare for word in words if (bare := word.strip(".,;:()[]\"'")) and bare.lower() not in common]
        if telling and rng.random() < ELSEWHERE:
            telling.insert(rng.randrange(len(telling) + 1), rng.choice(rng.choice(views).page.words))
        if len(telling) < 2:
            return None
        question = framed(telling, rng) if rng.random() < SENTENCES else as_question(telling, rng, common)
        return (question, gold) if telling_words(question, common) >= 2 else None


def lines(page: KeptPage) -> list[np.ndarray]:
    """Indices of the words of each line, in reading order."""
    return np.split(np.arange(len(page.words)), np.flatnonzero(np.abs(np.diff(page.middle)) > SAME_LINE) + 1)


def column_head(page: KeptPage, index: int) -> int | None:
    """The nearest word without a digit above another one, which may be its column's name."""
    over = (page.left < page.right[index]) & (page.right > page.left[index])
    over &= page.middle < page.middle[index] - SAME_LINE
    found = [int(other) for other in np.flatnonzero(over) if not any(map(str.isdigit, page.words[other]))]
    return max(found, key=lambda other: float(page.middle[other]), default=None)
