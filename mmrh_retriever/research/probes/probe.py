"""A probe: a context of texts and pictures, a question on it, and where the evidence stands.

The four tasks are those of "Can Retrieval Heads See Images?", Li et al. 2026, arXiv 2605.27243: ``text`` (a short
factual sentence in a long context), ``image`` (a picture pasted into a larger one; multiple choice among pictures),
``rendered_text`` (the sentence rendered as a picture) and ``identical_image`` (was this very picture shown?).
:func:`page_probes` adds a fifth kind: whole pages and questions that some of them answer.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Literal, get_args

from PIL import Image

from mmrh_retriever.errors import DataError
from mmrh_retriever.types import Page

Task = Literal["text", "image", "rendered_text", "identical_image"]
TASKS: tuple[Task, ...] = get_args(Task)
QuestionParts = tuple[str | Page, ...]
CountTokens = Callable[[Page], int]
"""How many tokens one item of the context takes in the prompt of the model that is probed."""
LETTERS = string.ascii_uppercase  # what the pictures offered as answers are called


@dataclass(frozen=True, slots=True)
class Evidence:
    """Where the answer stands: an item of the context, or the characters ``start`` to ``stop`` of its text."""

    item: int
    start: int | None = None
    stop: int | None = None

    def __post_init__(self) -> None:
        start, stop = (-1 if end is None else end for end in (self.start, self.stop))
        if (self.start, self.stop) != (None, None) and not 0 <= start < stop:
            raise DataError(f"Evidence spans characters 0 <= start < stop, got {self.start} and {self.stop}.")


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """One question on one context.

    Attributes:
        task: the task that the probe counts for.
        name: its name, different for each probe of a run.
        items: text passages and pictures, in the order in which the model reads them.
        question: texts and pictures.
        evidence: where the answer stands; empty where the right answer is that there is none.
        answer: the right answer.
        context_length: the length, in tokens, that the probe counts for.
        depth: the share of the context before the needle, 0 to 1.
        options: pictures offered as answers A, B, C ... behind the question. The null question keeps them.
        choices: texts that a model may be asked to choose from, the answer among them; empty where the answer is free.
        labelled: items are written as pages of a ranking ("Page 3: ..."), as :class:`Reranker` does.
        accepted: other wordings of the answer.
        continues: the answer goes on with the question's own words instead of opening a new turn.

    Raises:
        DataError: no items or question, evidence outside the items, an answer that is not among the choices.
    """

    task: str
    name: str
    items: tuple[Page, ...]
    question: QuestionParts
    evidence: tuple[Evidence, ...]
    answer: str
    context_length: int
    depth: float = 0.0
    options: tuple[Page, ...] = ()
    choices: tuple[str, ...] = ()
    labelled: bool = False
    accepted: tuple[str, ...] = ()
    continues: bool = False

    def __post_init__(self) -> None:
        if not self.items or not self.question:
            raise DataError(f"Probe {self.name!r} needs a context and a question; it has {len(self.items)} items.")
        for span in self.evidence:
            text = self.items[span.item].text or "" if 0 <= span.item < len(self.items) else None
            if text is None or (span.stop or 0) > len(text):
                raise DataError(
                    f"Probe {self.name!r}: the evidence {span} lies outside of its {len(self.items)} items."
                )
        if self.choices and self.answer not in self.choices:
            raise DataError(f"Probe {self.name!r}: the answer {self.answer!r} is not among {self.choices}.")
        if not 0.0 <= self.depth <= 1.0 or self.context_length < 1:
            raise DataError(
                f"Probe {self.name!r}: depth lies in 0 to 1 and a context length from 1, got {self.depth} and "
                f"{self.context_length}."
            )

    @property
    def gold(self) -> frozenset[int]:
        """Items that hold evidence."""
        return frozenset(span.item for span in self.evidence)

    def stretches(self, item: int) -> list[tuple[str, bool]]:
        """An item's text, cut around the evidence in it: each stretch, and whether it is evidence.

        Empty for items that are evidence as a whole or not at all.
        """
        spans = [(one.start, one.stop or 0) for one in self.evidence if one.item == item and one.start is not None]
        text = self.items[item].text or ""
        cuts = pairwise(accumulate([0, *chain(*sorted(spans)), len(text)], max)) if spans else ()
        return [(text[start:stop], number % 2 == 1) for number, (start, stop) in enumerate(cuts) if start < stop]

    def fingerprint(self) -> str:
        """A digest of everything that the model is shown and asked, to know the same probe again."""
        parts = [self.task, self.name, self.answer, str(self.context_length), str(self.labelled), repr(self.evidence)]
        shown: list[str | Page] = [*self.items, *self.question, *self.options]
        parts += [part if isinstance(part, str) else _identity(part) for part in shown]
        digest = hashlib.sha256("".join(f"{part}\0" for part in parts).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]


def _identity(page: Page) -> str:
    image = page.image
    if isinstance(image, (bytes, Image.Image)):
        name = hashlib.sha256(image if isinstance(image, bytes) else image.tobytes()).hexdigest()
    elif isinstance(image, (str, Path)):
        name = f"{Path(image).name} {Path(image).stat().st_size}"
    else:
        name = "" if image is None else f"{type(image).__name__} {page.doc_id} {page.index} {image!r}"
    return f"{page.text or ''}\1{name}"


def page_probes(
    pages: Sequence[Page],
    questions: Iterable[tuple[str, int | Iterable[int]]],
    *,
    context_length: int,
    task: str = "page",
    name: str = "pages",
) -> Iterator[Probe]:
    """Probes whose items are whole pages: each question with the index of the page or pages that answer it.

    The model sees the pages as :class:`Reranker` shows them. Probes on the same pages share one prefill in detection.

    ``questions`` are ``(text, gold index or indices)``, counted from 0. Scores are filed under ``task`` and
    ``context_length`` (in tokens). Give each list of pages a ``name`` of its own: what its probes are called.

    Raises:
        DataError: a gold index outside the pages.
    """
    items = tuple(pages)
    for number, (question, gold) in enumerate(questions):
        indices = [gold] if isinstance(gold, int) else list(gold)
        yield Probe(
            task=task,
            name=f"{name}-{number}",
            items=items,
            question=(question,),
            evidence=tuple(map(Evidence, indices)),
            answer="",
            context_length=context_length,
            depth=page_depth(indices, len(items)),
            labelled=True,
        )


def was_shown(picture: Page) -> QuestionParts:
    """The question of the task ``identical_image``; the answer is yes or no."""
    return ("Was the following picture shown above? ", picture, " Answer yes or no.")


def page_depth(indices: Sequence[int], pages: int) -> float:
    """How deep the first of some pages stands among all, 0 to 1; 0 where there is none."""
    first = indices[0] if indices and 0 <= indices[0] < pages else 0
    return first / max(1, pages - 1)
