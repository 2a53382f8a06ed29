"""Examples of the language stage: parts of a few pages, and questions made of what one of them says."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tools.reader.dialogue import Example, PromptWriter, ShownPage, as_question, telling_words
from tools.reader.shelf import Shelf, View
from tools.reader.words import inflected

SCATTERED = 0.35  # share of questions about several snippets of a page
ASKED = 0.7  # share of the others that are turned into questions
STRANGE = 0.4  # share of questions with words that need not stand on the page
OTHER_FORM = 0.12  # share of their words in another form than the page's: a plural, a participle
LARGEST = 10_000_000  # cells times question tokens in one example: its attention is held for all heads and layers
WHOLE = 0.3  # share of examples of many whole pages, at the end


@dataclass(frozen=True, slots=True)
class Shape:
    """How large an example is: pages, cells of each, and how many questions share the pages."""

    pages: int
    columns: int
    rows: int
    questions: int = 24


def shape_at(progress: float, rng: random.Random) -> Shape:
    """From parts of pages to many of them, and to as many whole pages as the reader is asked about."""
    small = (Shape(8, 12, 12), Shape(12, 12, 8), Shape(6, 24, 10), Shape(10, 16, 8))
    large = (Shape(12, 16, 16, 32), Shape(8, 24, 24, 32), Shape(20, 18, 18, 32), Shape(6, 48, 48, 32))
    if rng.random() < WHOLE * progress:
        return Shape(14, 52, 52, 8)
    return rng.choice(large if rng.random() < 0.2 + progress else small)


class ExampleMaker:
    """Prompts with questions about the pages of a shelf."""

    def __init__(self, shelf: Shelf, text_share: float = 0.1) -> None:
        self.shelf = shelf
        self.writer = PromptWriter(shelf.tokenizer)
        self.common = frozenset(shelf.words[:150])
        self._known = frozenset(shelf.words)
        self._text_share = text_share

    def snippet(self, view: View, shortest: int, longest: int) -> list[str] | None:
        """A run of words of the page that follow each other inside the view."""
        inside = view.words_inside()
        rng = self.shelf.rng
        runs = np.split(inside, np.flatnonzero(np.diff(inside) != 1) + 1)
        runs = [run for run in runs if len(run) >= shortest]
        if not runs:
            return None
        run = rng.choices(runs, weights=[len(run) for run in runs])[0]
        length = rng.randint(shortest, longest)
        start = rng.randrange(max(len(run) - length + 1, 1))
        return [view.page.words[index] for index in run[start : start + length]]

    def question(self, views: Sequence[View]) -> tuple[str, int] | None:
        """What one of the views says, as text, and which view; None where that has too little text.

        A quotation, a question about one, or a question about two or three snippets. Some hold words from elsewhere,
        or other forms of a word.
        """
        rng = self.shelf.rng
        gold = rng.randrange(len(views))
        scattered = rng.random() < SCATTERED
        snippets = rng.randint(2, 3) if scattered else 1
        found = [self.snippet(views[gold], *((2, 5) if scattered else (5, 16))) for _ in range(snippets)]
        words = [word for snippet in found if snippet is not None for word in snippet]
        if not words:
            return None
        asked = scattered or rng.random() < ASKED
        if asked and rng.random() < STRANGE:
            for _ in range(rng.randint(1, 3)):
                if rng.random() < 0.5:
                    strange = rng.choice(rng.choice(views).page.words)
                else:
                    strange = self.shelf.words[int(len(self.shelf.words) * rng.random() ** 3)]
                words.insert(rng.randrange(len(words) + 1), strange)
        if asked:
            words = [inflected(word, self._known, rng) if rng.random() < OTHER_FORM else word for word in words]
        question = as_question(words, rng, self.common) if asked else " ".join(words)
        return (question, gold) if telling_words(question, self.common) >= 2 else None

    def affordable(self, questions: list[tuple[str, int]], cells: int, largest: int = LARGEST) -> list[tuple[str, int]]:
        """As many of the questions as the memory for their attention allows; each takes as much as the longest."""
        longest = max((len(self.writer.plain(question)) for question, _ in questions), default=1)
        return questions[: largest // (cells * longest)]

    def make(self, shape: Shape) -> tuple[Example, torch.Tensor]:
        """One example and the visual tokens that it shows, in order: (cells, width)."""
        rng = self.shelf.rng
        while True:
            views = [self.shelf.view(page, shape.columns, shape.rows) for page in self.shelf.pages(shape.pages)]
            questions = [asked for _ in range(shape.questions) if (asked := self.question(views)) is not None]
            questions = self.affordable(questions, sum(view.columns * view.rows for view in views))
            if not questions:
                continue
            shown, tokens = [], []
            for view in views:
                if rng.random() < self._text_share:
                    text = tuple(view.page.words[index] for index in view.words_inside())
                    shown.append(ShownPage(0, 0, text))
                else:
                    shown.append(ShownPage(view.columns, view.rows, shift=(view.row, view.column)))
                    tokens.append(view.tokens())
            first = rng.randrange(1, 30) if rng.random() < 0.3 else 1
            if tokens:
                return self.writer.write(shown, questions, rng, first), torch.cat(tokens)
