"""Probes: a needle in an interleaved text-image context, a question that asks for it, and where the evidence lies.

The four tasks are those of "Can Retrieval Heads See Images?", Li et al. 2026, arXiv 2605.27243: ``text`` (a short
factual sentence in a long context), ``image`` (a picture pasted into a larger one; multiple choice among pictures),
``rendered_text`` (the sentence rendered as a picture) and ``identical_image`` (was this very picture shown?).
:func:`page_probes` adds a fifth kind: whole pages and questions that some of them answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from mmrh_retriever.errors import DataError
from mmrh_retriever.research.probes.haystacks import Haystack, PastedPicture, RenderedText, picture_of, sentences
from mmrh_retriever.research.probes.needles import Fact, draw_fact
from mmrh_retriever.types import Page

Task = Literal["text", "image", "rendered_text", "identical_image"]
TASKS: tuple[Task, ...] = get_args(Task)
QuestionParts = tuple[str | Page, ...]
CountTokens = Callable[[Page], int]
"""How many tokens one item of the context takes in the prompt of the model that is probed."""

UNIT_TOKENS = 500
"""Tokens of text that make one unit of a haystack; a picture is a unit too."""
ROOM_FOR_WORDING = 64
"""Tokens kept for the chat template, the instruction and the question's label."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Where the answer stands: an item of the context, or the characters ``start`` to ``stop`` of its text."""

    item: int
    start: int | None = None
    stop: int | None = None

    def __post_init__(self) -> None:
        if (self.start is None) != (self.stop is None) or (
            self.start is not None and self.stop is not None and not 0 <= self.start < self.stop
        ):
            raise DataError(f"Evidence spans characters 0 <= start < stop, got {self.start} and {self.stop}.")


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """One question on one context.

    ``items`` are text passages and pictures in the order in which the model reads them. ``question`` is made of
    texts and pictures; ``options`` are the pictures offered as answers A, B, C ... behind it, which the null question
    keeps. ``evidence`` is empty where the right answer is that there is none. ``choices`` hold the texts that a model
    may be asked to choose from, the right ``answer`` among them; empty where the answer is free. ``accepted`` are other
    wordings of the answer. ``context_length`` (tokens) is the condition that the probe counts for; ``depth`` is the
    share of the context in front of the needle, 0 to 1. ``labelled`` lays items as pages of a ranking ("Page 3: ..."),
    as :class:`Reranker` does. Where a probe ``continues``, the answer goes on with the question's own words instead of
    opening a new turn.

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
        for place in self.evidence:
            text = self.items[place.item].text if 0 <= place.item < len(self.items) else None
            outside = not 0 <= place.item < len(self.items) or (
                place.stop is not None and (text is None or place.stop > len(text))
            )
            if outside:
                raise DataError(
                    f"Probe {self.name!r}: the evidence {place} lies outside of its {len(self.items)} items."
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
        return frozenset(place.item for place in self.evidence)

    @property
    def question_text(self) -> str:
        """The question's words, without its pictures."""
        return "".join(part for part in self.question if isinstance(part, str)).strip()

    @property
    def question_images(self) -> tuple[Page, ...]:
        """The pictures inside the question."""
        return tuple(part for part in self.question if isinstance(part, Page))

    def fingerprint(self) -> str:
        """A digest of everything that the model is shown and asked, to know the same probe again."""
        digest = hashlib.sha256()
        parts = [self.task, self.name, self.answer, str(self.context_length), str(self.labelled), repr(self.evidence)]
        shown: list[str | Page] = [*self.items, *self.question, *self.options]
        parts += [part if isinstance(part, str) else _identity(part) for part in shown]
        for part in parts:
            digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
        return digest.hexdigest()[:16]


def _identity(page: Page) -> str:
    image = page.image
    if isinstance(image, bytes):
        image_name = hashlib.sha256(image).hexdigest()
    elif isinstance(image, Image.Image):
        image_name = hashlib.sha256(image.tobytes()).hexdigest()
    elif isinstance(image, (str, Path)):
        image_name = f"{Path(image).name} {Path(image).stat().st_size}"
    else:
        image_name = "" if image is None else f"{type(image).__name__} {page.doc_id} {page.index} {image!r}"
    return f"{page.text or ''}\1{image_name}"


def page_probes(
    pages: Sequence[Page],
    questions: Iterable[tuple[str, int | Iterable[int]]],
    *,
    context_length: int,
    task: str = "page",
    name: str = "pages",
) -> Iterator[Probe]:
    """Probes whose items are whole pages: each question with the place (from 0) of the page or pages that answer it.

    The model sees them as :class:`Reranker` lays pages. Probes on the same pages share one prefill in detection.

    Args:
        pages: the context of every question.
        questions: ``(text, gold place or places)``.
        context_length: the condition, in tokens, that the scores are filed under.
        task: the task that the scores are filed under.
        name: what the probes are called; give each list of pages its own.

    Raises:
        DataError: a gold place outside the pages.
    """
    items = tuple(pages)
    for number, (question, gold) in enumerate(questions):
        places = [gold] if isinstance(gold, int) else list(gold)
        yield Probe(
            task=task,
            name=f"{name}-{number}",
            items=items,
            question=(question,),
            evidence=tuple(Evidence(place) for place in places),
            answer="",
            context_length=context_length,
            depth=places[0] / max(1, len(items) - 1) if places and 0 <= places[0] < len(items) else 0.0,
            labelled=True,
        )


@dataclass(frozen=True, slots=True)
class _Needle:
    """What is hidden (a sentence or an item of its own) and what is asked."""

    sentence: str | None
    item: Page | None
    question: QuestionParts
    answer: str
    choices: tuple[str, ...]
    options: tuple[Page, ...] = ()
    pictures: tuple[Page, ...] = ()  # those of the haystack that the needle and question are made of


class ProbeBuilder:
    """Builds the probes of one condition.

    Args:
        count: tokens that an item takes in the model's prompt (:func:`.prompts.token_counter`).
        haystack: what needles are hidden in; generated if ``None``.
        image_share: share of the haystack's units that are pictures, 0 to 1; a unit is a picture or about 500
            tokens of text. It is met as nearly as whole units allow.
        seed: draws needles, haystacks and places; the same seed gives the same probes.

    Raises:
        DataError: an image share outside 0 to 1, or pictures asked of a haystack that has none.
    """

    def __init__(
        self, count: CountTokens, haystack: Haystack | None = None, *, image_share: float = 0.1, seed: int = 0
    ) -> None:
        self.count = count
        self.haystack = haystack or Haystack.generated(seed)
        self.image_share = image_share
        self.seed = seed
        if not 0.0 <= image_share <= 1.0:
            raise DataError(f"The image share of a haystack lies in 0 to 1, got {image_share}.")
        if image_share > 0 and not self.haystack.images:
            raise DataError(
                f"The haystack {self.haystack.name!r} has no pictures: give images, or an image share of 0."
            )
        self._sentences = [one for passage in self.haystack.passages for one in sentences(passage)]
        self._sentence_tokens: dict[str, int] = {}
        self._image_tokens: dict[int, int] = {}

    def build(
        self,
        task: str,
        context_length: int,
        *,
        examples: int = 20,
        depths: int = 6,
        negatives: bool = False,
        cloze: bool = False,
    ) -> Iterator[Probe]:
        """Probes of a task at a context length: each example with its needle at each depth.

        The context with the question takes at most ``context_length`` tokens and falls short of it by about a
        sentence. Depths run evenly from 0 to 1 (one depth: 0.5). ``negatives`` adds, for ``identical_image``, a probe
        without the needle for each one with it, whose answer is "no". ``cloze`` asks with the needle sentence up to its
        answer instead of a question, for models that complete texts and were not taught to answer.

        Raises:
            DataError: an unknown task, or a needle and question longer than the context.
        """
        if task not in TASKS:
            raise DataError(f"Unknown task {task!r}. Expected one of {', '.join(TASKS)}.")
        if cloze and task not in ("text", "rendered_text"):
            raise DataError(f"The task {task!r} has no sentence to complete; cloze fits text and rendered_text.")
        if examples < 1 or depths < 1:
            raise DataError(f"Probes need at least one example and one depth, got {examples} and {depths}.")
        shares = [0.5] if depths == 1 else [float(depth) for depth in np.linspace(0.0, 1.0, depths)]
        for example in range(examples):
            rng = np.random.default_rng([self.seed, TASKS.index(task), context_length, example])
            needle = self._needle(task, rng, cloze=cloze)
            units = self._fill(self._room(task, needle, context_length), needle, rng)
            for depth in shares:
                items, evidence = _placed(units, needle, depth)
                yield Probe(
                    task=task,
                    name=f"{task}-{context_length}-{example}-{depth:.2f}",
                    items=items,
                    question=needle.question,
                    evidence=(evidence,),
                    answer=needle.answer,
                    context_length=context_length,
                    depth=depth,
                    options=needle.options,
                    choices=needle.choices,
                    continues=cloze,
                )
                if negatives and task == "identical_image":
                    yield Probe(
                        task=task,
                        name=f"{task}-{context_length}-{example}-{depth:.2f}-absent",
                        items=tuple(units),
                        question=needle.question,
                        evidence=(),
                        answer="no",
                        context_length=context_length,
                        depth=depth,
                        choices=needle.choices,
                    )

    def _needle(self, task: str, rng: np.random.Generator, *, cloze: bool) -> _Needle:
        if task in ("text", "rendered_text"):
            fact: Fact = draw_fact(rng)
            question = (fact.stem if cloze else fact.question,)
            if task == "text":
                return _Needle(fact.sentence, None, question, fact.answer, fact.choices)
            item = Page(image=RenderedText(fact.sentence), doc_id="needle")
            return _Needle(None, item, question, fact.answer, fact.choices)
        if len(self.haystack.images) < 2:
            raise DataError(f"The task {task!r} needs pictures; the haystack {self.haystack.name!r} has too few.")
        drawn = [int(place) for place in rng.permutation(len(self.haystack.images))[:5]]
        pictures = [picture_of(self.haystack.images[place]) for place in drawn]
        if task == "identical_image":
            asked = ("Was the following picture shown above? ", pictures[0], " Answer yes or no.")
            return _Needle(None, pictures[0], asked, "yes", ("yes", "no"), pictures=(pictures[0],))
        host, options = pictures[0], pictures[1:]
        right = int(rng.integers(len(options)))
        pasted = Page(image=PastedPicture(host, options[right], int(rng.integers(1 << 31))), doc_id="needle")
        letters = tuple("ABCD"[: len(options)])
        asked_for = ("Which of the following pictures is part of a picture shown above?",)
        return _Needle(None, pasted, asked_for, letters[right], letters, tuple(options), tuple(pictures))

    def _room(self, task: str, needle: _Needle, context_length: int) -> int:
        """Tokens that are left for the haystack."""
        own = [needle.item] if needle.item is not None else [Page(text=needle.sentence)]
        asked = [Page(text=part) if isinstance(part, str) else part for part in (*needle.question, *needle.options)]
        taken = ROOM_FOR_WORDING + sum(map(self.count, [*own, *asked]))
        if taken >= context_length:
            raise DataError(
                f"The needle and question of the task {task!r} take {taken} tokens with their wording; the context of "
                f"{context_length} has no room for a haystack. Ask for longer contexts or use smaller pictures."
            )
        return context_length - taken

    def _fill(self, room: int, needle: _Needle, rng: np.random.Generator) -> list[Page]:
        """Units of at most ``room`` tokens in all, pictures at random places among the texts; none of the needle's."""
        images = self._draw_images(room, needle, rng)
        left = room - sum(self._image_size(image) for image in images)
        texts = self._draw_texts(left, max(1, round(left / UNIT_TOKENS)), rng)
        units = [*images, *texts]
        return [units[int(place)] for place in rng.permutation(len(units))]

    def _draw_images(self, room: int, needle: _Needle, rng: np.random.Generator) -> list[Page]:
        if not self.image_share:
            return []
        shuffled = [self.haystack.images[int(place)] for place in rng.permutation(len(self.haystack.images))]
        taken = {id(page.image) for page in needle.pictures}
        pool = [picture_of(page) for page in shuffled if id(page.image) not in taken]
        if not pool:
            raise DataError(
                f"The haystack {self.haystack.name!r} has {len(shuffled)} pictures, all of them in the question. Add "
                "more, or ask for an image share of 0."
            )
        each = self._image_size(pool[0])
        units = room / (self.image_share * each + (1 - self.image_share) * UNIT_TOKENS)
        wanted = round(units * self.image_share)
        found: list[Page] = []
        left = room
        while len(found) < wanted:
            picture = pool[len(found) % len(pool)]
            left -= self._image_size(picture)
            if left < 0:
                break
            found.append(picture)
        return found

    def _draw_texts(self, room: int, units: int, rng: np.random.Generator) -> list[Page]:
        start, made, left = int(rng.integers(len(self._sentences))), [], room
        for unit in range(units):
            budget = left // (units - unit)
            chosen: list[str] = []
            size = 0
            while True:
                sentence = self._sentences[start % len(self._sentences)]
                size += self._sentence_size(sentence)
                if size > budget:
                    break
                chosen.append(sentence)
                start += 1
            while chosen:
                page = Page(text=" ".join(chosen))
                tokens = self.count(page)
                if tokens <= budget:
                    made.append(page)
                    left -= tokens
                    break
                chosen.pop()
                start -= 1
        return made

    def _sentence_size(self, sentence: str) -> int:
        if sentence not in self._sentence_tokens:
            self._sentence_tokens[sentence] = self.count(Page(text=sentence)) - 1
        return max(1, self._sentence_tokens[sentence])

    def _image_size(self, page: Page) -> int:
        key = id(page.image)
        if key not in self._image_tokens:
            self._image_tokens[key] = self.count(page)
        return self._image_tokens[key]


def _placed(units: Sequence[Page], needle: _Needle, depth: float) -> tuple[tuple[Page, ...], Evidence]:
    """The haystack with its needle at a depth, and where the needle lies."""
    before, behind = _split(units, depth)
    if needle.item is not None:
        items = [*before, needle.item, *behind]
        return tuple(items), Evidence(len(before))
    sentence = str(needle.sentence)
    left = before.pop().text if before and before[-1].image is None else None
    right = behind.pop(0).text if behind and behind[0].image is None else None
    start = 0 if left is None else len(left)
    text = " ".join(part for part in (left, sentence, right) if part)
    # the blank in front belongs to the needle, so that its first word is one token as in running text
    return (*before, Page(text=text), *behind), Evidence(len(before), start, start + len(sentence) + (start > 0))


def _split(units: Sequence[Page], depth: float) -> tuple[list[Page], list[Page]]:
    """The units before and behind a depth; a text unit is cut between the nearest two sentences."""
    weights = [len(unit.text) if unit.text is not None and unit.image is None else 4 * UNIT_TOKENS for unit in units]
    target, passed = depth * sum(weights), 0.0
    for place, (unit, weight) in enumerate(zip(units, weights, strict=True)):
        if target > passed + weight:
            passed += weight
            continue
        share = (target - passed) / weight
        before, behind = list(units[:place]), list(units[place + 1 :])
        parts = sentences(unit.text) if unit.image is None and unit.text is not None else []
        cut = round(share * len(parts)) if parts else round(share)
        if not parts:
            return ([*before, unit], behind) if cut else (before, [unit, *behind])
        left, right = " ".join(parts[:cut]), " ".join(parts[cut:])
        return [*before, *([Page(text=left)] if left else [])], [*([Page(text=right)] if right else []), *behind]
    return list(units), []
