"""Training examples as the reader is used: instruction, labelled pages, then the question."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from transformers import PreTrainedTokenizerFast

INSTRUCTION = "Find the pages that hold the evidence for the question."
PAGE_LABEL = "Page {number}: "
QUESTION_LABEL = "Question: "
NULL_QUESTION = "N/A"
_OPENINGS = (
    "what is the", "what are the", "what was the", "how many", "how much", "how does", "how do", "how can i", "which",
    "who", "when was", "when did", "where is", "where can", "why does", "why is", "what does", "is it true that",
    "according to the document what is", "what percentage of", "can you tell me about", "describe", "list the",
    "what happens if", "in which", "does the", "what kind of", "explain", "tell me", "find", "what do you know about",
)  # fmt: skip
_FRAMES = (
    "what is {}", "what does the page say about {}", "how many {} are there", "where can i find the {}",
    "how many {} does {} have", "what is the {} of the {}", "which of the {} is used for the {}",
    "what was the {} in {}", "how much did the {} change from {}", "who is the {} of {} and what do they do",
    "what percentage of {} has a {} that is in the {}", "how do i get the {} to do {} with the {}",
    "is there any {} that has been {} by the {}", "what are the {} of {} when there is no {}",
    "in the table of {} what is the value for the {}", "according to the {} what is the {} in the {}",
)  # fmt: skip
_LINKS = ("of", "the", "in", "for", "and", "with", "to", "on", "about", "from", "used", "mentioned", "shown", "given")


@dataclass(frozen=True, slots=True)
class ShownPage:
    """What one page shows: visual cells, or words where it is given as text."""

    columns: int
    rows: int
    text: tuple[str, ...] | None = None
    shift: tuple[int, int] = (0, 0)  # rows and columns to the left of and above this part of a larger page


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt as tokens. Tokens that are visual cells have id -1."""

    ids: np.ndarray  # (tokens,)
    positions: np.ndarray  # (3, tokens)
    questions: tuple[tuple[int, int], ...]
    golds: tuple[int, ...]  # each question's page
    pages: tuple[tuple[int, int], ...]
    segments: np.ndarray  # (tokens,): 0 for the prompt prefix, -n for the n-th page, n for the n-th question


class PromptWriter:
    """Writes prompts with one tokenizer and knows where everything stands in them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        token = tokenizer.convert_tokens_to_ids
        self.vision_start, self.vision_end = token("<|vision_start|>"), token("<|vision_end|>")
        self.end = token("<|im_end|>")
        self._prefix = [token("<|im_start|>"), *self.plain("user\n" + INSTRUCTION + "\n")]
        self._labels = [self.plain(PAGE_LABEL.format(number=number)) for number in range(201)]
        self._question = self.plain(QUESTION_LABEL)

    def plain(self, text: str) -> list[int]:
        """Ids of plain text."""
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    @property
    def prefix_length(self) -> int:
        """Tokens of the prompt's beginning."""
        return len(self._prefix)

    @property
    def page_side(self) -> list[int]:
        """Every id that can stand on the pages' side of a prompt: its beginning, the labels, special tokens."""
        label_ids = {number for label in self._labels for number in label}
        return sorted({*self._prefix, *label_ids, *self._tokenizer.all_special_ids})

    def asked(self, question: str) -> list[int]:
        """Ids of a question behind its label."""
        return self._question + self.plain(question)

    def write(
        self,
        pages: Sequence[ShownPage],
        questions: Sequence[tuple[str, int]],
        rng: random.Random | None = None,
        first: int = 1,
        *,
        independent: bool = True,
    ) -> Example:
        """Pages with (question, gold page) pairs behind them, each question as if it were the only one.

        With `independent`, each page stands as if alone behind the prompt prefix: it sees nothing of the other pages
        and starts where they start. Questions stand behind the largest page and see all pages. With `rng`, positions
        are moved at random, as larger pages would move them.
        """
        ids: list[int] = list(self._prefix)
        positions: list[np.ndarray] = [np.tile(np.arange(len(ids)), (3, 1))]
        position = len(ids)
        spans = []

        def add(tokens: list[int]) -> None:
            nonlocal position
            ids.extend(tokens)
            positions.append(np.tile(position + np.arange(len(tokens)), (3, 1)))
            position += len(tokens)

        segments = [0] * len(ids)
        prefix_end = furthest = position
        for count, page in enumerate(pages, start=1):
            if independent:
                position = prefix_end
            add(self._labels[first + count - 1])
            begin = len(ids)
            if page.text is not None:
                add(self.plain(" ".join(page.text)))
            else:
                add([self.vision_start])
                size = page.rows * page.columns
                row, column = np.divmod(np.arange(size), page.columns)
                ids.extend([-1] * size)
                grid = np.stack([np.zeros(size, int), row + page.shift[0], column + page.shift[1]])
                positions.append(position + grid)
                position += max(page.rows + page.shift[0], page.columns + page.shift[1])
                add([self.vision_end])
            spans.append((begin, len(ids)))
            segments.extend([-count if independent else 0] * (len(ids) - len(segments)))
            if rng is not None and not independent and rng.random() < 0.7:
                position += rng.randrange(60)
            furthest = max(furthest, position)
        if rng is not None and independent and rng.random() < 0.7:
            furthest += rng.randrange(30)  # as if another page were larger
        asked = []
        for number, (question, _) in enumerate(questions, start=1):
            position = furthest
            add(self._question)
            begin = len(ids)
            add(self.plain(question))
            asked.append((begin, len(ids)))
            add([self.end])
            segments.extend([number] * (len(ids) - len(segments)))
        return Example(
            np.array(ids),
            np.concatenate(positions, axis=1),
            tuple(asked),
            tuple(gold for _, gold in questions),
            tuple(spans),
            np.array(segments),
        )


def as_question(words: Sequence[str], rng: random.Random, common: frozenset[str]) -> str:
    """A snippet as someone would ask about it: words are dropped and moved, question words and links are put in."""
    words = [word.strip(".,;:()[]\"'") for word in words]
    content = [word for word in words if word and word.lower() not in common]
    if len(content) < 2:
        return " ".join(words)
    keep = [
        word for word in words if word and ((word.lower() not in common and rng.random() < 0.75) or rng.random() < 0.15)
    ]
    if len(keep) < 2:
        keep = content
    if rng.random() < 0.4:
        cut = rng.randrange(len(keep))
        keep = keep[cut:] + keep[:cut]
    elif rng.random() < 0.3:
        rng.shuffle(keep)
    asked: list[str] = [rng.choice(_OPENINGS)] if rng.random() < 0.85 else []
    for word in keep:
        asked.append(word)
        if rng.random() < 0.25:
            asked.append(rng.choice(_LINKS))
    return " ".join(asked) + (" ?" if rng.random() < 0.8 else "")


def framed(words: Sequence[str], rng: random.Random) -> str:
    """Words inside a question as people write it: most of its tokens are function words."""
    frame = rng.choice([frame for frame in _FRAMES if frame.count("{}") <= len(words)])
    parts = frame.count("{}")
    cuts = [0, *sorted(rng.sample(range(1, len(words)), parts - 1)), len(words)]
    return frame.format(*(" ".join(words[start:stop]) for start, stop in pairwise(cuts))) + rng.choice(("?", " ?", ""))


def telling_words(question: str, common: frozenset[str]) -> int:
    """How many words of a question may tell pages apart: those that are not common and have four letters or more."""
    return sum(len(word) > 3 and word.isalpha() and word not in common for word in question.split())
