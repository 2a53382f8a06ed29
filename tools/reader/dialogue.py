"""Training examples in the layout in which the reader is used: instruction, labelled pages, then the question."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

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
_LINKS = ("of", "the", "in", "for", "and", "with", "to", "on", "about", "from", "used", "mentioned", "shown", "given")


@dataclass(frozen=True, slots=True)
class ShownPage:
    """What one page shows: visual cells with their label sets, or text."""

    columns: int
    rows: int
    cells: np.ndarray | None  # (labels, 2) of (cell, piece); None where the page is given as text
    text: tuple[str, ...] = ()
    shift: tuple[int, int] = (0, 0)  # rows and columns to the left of and above this part of a larger page


@dataclass(frozen=True, slots=True)
class Example:
    """One laid prompt. Tokens that are visual cells have id -1 and a place in `cells`."""

    ids: np.ndarray  # (tokens,)
    positions: np.ndarray  # (3, tokens)
    cells: np.ndarray  # (labels, 2): running number of the visual token, piece
    n_cells: int
    question: tuple[int, int]
    pages: tuple[tuple[int, int], ...]
    gold: int


class Layer:
    """Lays prompts with one tokenizer, by bookkeeping."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        token = tokenizer.convert_tokens_to_ids
        self.vision_start, self.vision_end = token("<|vision_start|>"), token("<|vision_end|>")
        self.end = token("<|im_end|>")
        self._head = [token("<|im_start|>"), *self.plain("user\n" + INSTRUCTION + "\n")]
        self._labels = [self.plain(PAGE_LABEL.format(number=number)) for number in range(201)]
        self._question = self.plain(QUESTION_LABEL)

    def plain(self, text: str) -> list[int]:
        """Ids of plain text."""
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def lay(
        self, pages: Sequence[ShownPage], question: str, gold: int, rng: random.Random | None = None, first: int = 1
    ) -> Example:
        """With `rng`, positions jump at random between pages, as pages larger than these would make them."""
        ids: list[int] = list(self._head)
        positions: list[np.ndarray] = [np.tile(np.arange(len(ids)), (3, 1))]
        place = len(ids)
        found, spans, n_cells = [], [], 0

        def add(tokens: list[int]) -> None:
            nonlocal place
            ids.extend(tokens)
            positions.append(np.tile(place + np.arange(len(tokens)), (3, 1)))
            place += len(tokens)

        for number, page in enumerate(pages, start=first):
            add(self._labels[number])
            begin = len(ids)
            if page.cells is None:
                add(self.plain(" ".join(page.text)))
            else:
                add([self.vision_start])
                count = page.rows * page.columns
                row, column = np.divmod(np.arange(count), page.columns)
                ids.extend([-1] * count)
                grid = np.stack([np.zeros(count, int), row + page.shift[0], column + page.shift[1]])
                positions.append(place + grid)
                place += max(page.rows + page.shift[0], page.columns + page.shift[1])
                if len(page.cells):
                    found.append(page.cells + [n_cells, 0])
                n_cells += count
                add([self.vision_end])
            spans.append((begin, len(ids)))
            if rng is not None and rng.random() < 0.5:
                place += rng.randrange(30)
        add(self._question)
        begin = len(ids)
        add(self.plain(question))
        end = len(ids)
        add([self.end])
        cells = np.concatenate(found) if found else np.zeros((0, 2), np.int64)
        return Example(
            np.array(ids), np.concatenate(positions, axis=1), cells, n_cells, (begin, end), tuple(spans), gold
        )


def as_question(words: Sequence[str], rng: random.Random, common: frozenset[str]) -> str:
    """A snippet as someone would ask about it: words dropped and moved, question words and links put in."""
    words = [word.strip(".,;:()[]\"'") for word in words]
    content = [word for word in words if word and word.lower() not in common]
    if len(content) < 2:
        return " ".join(words)
    keep = [word for word in words if word and (word.lower() not in common and rng.random() < 0.75 or rng.random() < 0.15)]
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
