"""Builds probes: needles hidden in a haystack, at each depth of contexts of a given length."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, cycle, islice

import numpy as np

from mmrh_retriever.errors import DataError
from mmrh_retriever.research.probes.haystacks import Haystack, PastedPicture, RenderedText, picture_of, sentences
from mmrh_retriever.research.probes.invented_text import draw_fact
from mmrh_retriever.research.probes.probe import LETTERS, TASKS, CountTokens, Evidence, Probe, QuestionParts, was_shown
from mmrh_retriever.types import Page

UNIT_TOKENS = 500  # of text; a picture is a unit of a haystack too
ROOM_FOR_WORDING = 64  # tokens kept for the chat template, the instruction and the question's label


@dataclass(frozen=True, slots=True)
class _Needle:
    """What is hidden (a sentence, or a picture as an item of its own) and what is asked."""

    item: Page
    question: QuestionParts
    answer: str
    choices: tuple[str, ...]
    options: tuple[Page, ...] = ()
    pictures: tuple[Page, ...] = ()  # those of the haystack that the needle and question are made of


class ProbeBuilder:
    """Builds probes; the same seed gives the same ones.

    Args:
        count: how many tokens an item takes in the model's prompt (:func:`.prompts.token_counter`).
        haystack: what needles are hidden in; generated if ``None``.
        image_share: share of the haystack's units that are pictures, 0 to 1, as nearly as whole units allow; a unit is
            a picture or about 500 tokens of text.
        seed: draws needles and haystacks.

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
        self._sizes: dict[str | int, int] = {}

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

        Context and question take at most ``context_length`` tokens, and about a sentence less. Depths run evenly from 0
        to 1; a single one is 0.5. ``negatives`` adds a probe without the needle, with the answer "no", for each one of
        ``identical_image``. ``cloze`` asks with the needle up to its answer, for models that complete texts.

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
                items, evidence = _placed(units, needle.item, depth)
                probe = Probe(
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
                yield probe
                if negatives and task == "identical_image":
                    yield replace(probe, name=f"{probe.name}-absent", items=tuple(units), evidence=(), answer="no")

    def _needle(self, task: str, rng: np.random.Generator, *, cloze: bool) -> _Needle:
        if task in ("text", "rendered_text"):
            fact = draw_fact(rng)
            item = Page(text=fact.sentence)
            if task == "rendered_text":
                item = Page(image=RenderedText(fact.sentence), doc_id="needle")
            return _Needle(item, (fact.stem if cloze else fact.question,), fact.answer, fact.choices)
        if len(self.haystack.images) < 2:
            raise DataError(f"The task {task!r} needs pictures; the haystack {self.haystack.name!r} has too few.")
        drawn = rng.permutation(len(self.haystack.images))[:5]
        host, *options = pictures = tuple(picture_of(self.haystack.images[index]) for index in drawn)
        if task == "identical_image":
            return _Needle(host, was_shown(host), "yes", ("yes", "no"), pictures=(host,))
        right = int(rng.integers(len(options)))
        pasted = Page(image=PastedPicture(host, options[right], int(rng.integers(1 << 31))), doc_id="needle")
        letters = tuple(LETTERS[: len(options)])
        asked_for = ("Which of the following pictures is part of a picture shown above?",)
        return _Needle(pasted, asked_for, letters[right], letters, tuple(options), pictures)

    def _room(self, task: str, needle: _Needle, context_length: int) -> int:
        """Tokens that are left for the haystack."""
        parts = (needle.item, *needle.question, *needle.options)
        sizes = [self.count(Page(text=part) if isinstance(part, str) else part) for part in parts]
        taken = ROOM_FOR_WORDING + sum(sizes)
        if taken >= context_length:
            raise DataError(
                f"The needle and question of the task {task!r} take {taken} tokens with their wording; the context of "
                f"{context_length} has no room for a haystack. Ask for longer contexts or use smaller pictures."
            )
        return context_length - taken

    def _fill(self, room: int, needle: _Needle, rng: np.random.Generator) -> list[Page]:
        """Units of at most ``room`` tokens in all, pictures scattered among the texts; none of the needle's."""
        images = self._draw_images(room, needle, rng) if self.image_share else []
        units = images + self._draw_texts(room - sum(map(self._size, images)), rng)
        return [units[index] for index in rng.permutation(len(units))]

    def _draw_images(self, room: int, needle: _Needle, rng: np.random.Generator) -> list[Page]:
        shuffled = [self.haystack.images[index] for index in rng.permutation(len(self.haystack.images))]
        taken = {id(page.image) for page in needle.pictures}
        pool = [picture_of(page) for page in shuffled if id(page.image) not in taken]
        if not pool:
            raise DataError(
                f"The haystack {self.haystack.name!r} has {len(shuffled)} pictures, all of them in the question. Add "
                "more, or ask for an image share of 0."
            )
        each = self._size(pool[0])
        units = room / (self.image_share * each + (1 - self.image_share) * UNIT_TOKENS)
        pictures = list(islice(cycle(pool), round(units * self.image_share)))
        fitting = bisect_right(list(accumulate(map(self._size, pictures))), room)
        return pictures[:fitting]

    def _draw_texts(self, room: int, rng: np.random.Generator) -> list[Page]:
        """Sentences that follow one another, in units of about equal size."""
        units: list[Page] = []
        start = int(rng.integers(len(self._sentences)))
        for missing in range(max(1, round(room / UNIT_TOKENS)), 0, -1):
            budget = room // missing
            chosen: list[str] = []
            size = tokens = 0
            for sentence in islice(cycle(self._sentences), start, None):
                size += max(1, self._size(Page(text=sentence)) - 1)
                if size > budget:
                    break
                chosen.append(sentence)
            while chosen and (tokens := self.count(Page(text=" ".join(chosen)))) > budget:
                chosen.pop()
            if chosen:
                units.append(Page(text=" ".join(chosen)))
                room -= tokens
            start = (start + len(chosen)) % len(self._sentences)
        return units

    def _size(self, page: Page) -> int:
        """The tokens of a sentence or picture, counted once."""
        key = page.text or id(page.image)
        if key not in self._sizes:
            self._sizes[key] = self.count(page)
        return self._sizes[key]


def _placed(units: Sequence[Page], needle: Page, depth: float) -> tuple[tuple[Page, ...], Evidence]:
    """The haystack with its needle at a depth, and where the needle stands."""
    before, behind = _split(units, depth)
    if needle.text is None:
        return (*before, needle, *behind), Evidence(len(before))
    left = before.pop().text if before and before[-1].text else None
    right = behind.pop(0).text if behind and behind[0].text else None
    text = " ".join(part for part in (left, needle.text, right) if part)
    # the blank in front belongs to the needle, so that its first word is one token as in running text
    start = len(left) if left else 0
    stop = start + len(needle.text) + (start > 0)
    return (*before, Page(text=text), *behind), Evidence(len(before), start, stop)


def _split(units: Sequence[Page], depth: float) -> tuple[list[Page], list[Page]]:
    """The units before and behind a depth; a text unit is cut between the nearest two sentences."""
    if not units:
        return [], []
    weights = [len(unit.text) if unit.text else 4 * UNIT_TOKENS for unit in units]
    ends = list(accumulate(weights))
    target = depth * ends[-1]
    index = min(bisect_left(ends, target), len(units) - 1)
    unit, share = units[index], (target - ends[index] + weights[index]) / weights[index]
    before, behind = list(units[:index]), list(units[index + 1 :])
    if not unit.text:
        return ([*before, unit], behind) if round(share) else (before, [unit, *behind])
    parts = sentences(unit.text)
    cut = round(share * len(parts))
    left, right = ([Page(text=" ".join(half))] if half else [] for half in (parts[:cut], parts[cut:]))
    return [*before, *left], [*right, *behind]
