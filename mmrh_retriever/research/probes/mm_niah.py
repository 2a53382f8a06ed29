"""Reader for MM-NIAH as MMLongBench ships it: JSON lines of needle questions on interleaved texts and images.

MM-NIAH is Wang et al. 2024, arXiv 2406.07230; MMLongBench, Wang et al. 2025, arXiv 2505.10610, re-cuts it to five
context lengths and six needle depths in files named like ``retrieval-text_test_K8_dep6.jsonl``. Neither is part of
this package; ``docs/heads.md`` says where to get them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from mmrh_retriever.errors import DataError
from mmrh_retriever.files import read_jsonl
from mmrh_retriever.research.probes.haystacks import RenderedText, picture_of
from mmrh_retriever.research.probes.probe import LETTERS, TASKS, Evidence, Probe, was_shown
from mmrh_retriever.types import Page

PLACEHOLDER = "<image>"
FILE_NAME = re.compile(r"retrieval-(text|image).*?(?:_K(\d+))?(?:_dep\d+)?\.jsonl")


class _Outside(BaseModel):
    """What others' files hold: fields that we don't know are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _Passage(_Outside):
    text: str


class _Meta(_Outside):
    placed_depth: float | list[float] | None = None
    context_length: int | None = Field(default=None, ge=1)
    needles: list[str] | None = None
    choices: list[str] | None = None
    choices_image_path: list[str] | None = None


class _Record(_Outside):
    """One line. MMLongBench cuts the context into ``ctxs``; the original has it whole in ``context``."""

    id: int | str
    question: str = Field(min_length=1)
    answer: str | int
    ctxs: list[_Passage] | None = None
    context: str | None = None
    image_list: list[str] = Field(default=[], validation_alias=AliasChoices("image_list", "images_list"))
    depth: float | None = Field(default=None, ge=0.0, le=1.0)
    needles: list[str] | None = None
    needle_image_list: list[str] | None = None
    choices: list[str] | None = None
    choices_image: list[str] | None = None
    meta: _Meta = _Meta()

    @property
    def text(self) -> str | None:
        """The context as one text with placeholders."""
        return "\n\n".join(passage.text for passage in self.ctxs) if self.ctxs is not None else self.context


def read_mm_niah(
    source: str | Path,
    images: str | Path,
    *,
    tasks: Sequence[str] = TASKS,
    lengths: Iterable[int] | None = None,
    limit: int | None = None,
    needs_evidence: bool = True,
) -> Iterator[Probe]:
    """Probes from a file, or from every ``retrieval-*.jsonl`` below a folder.

    ``retrieval-text`` files give the tasks ``text`` and, with the needle drawn as a picture, ``rendered_text``;
    ``retrieval-image`` files give ``image`` and, with the right option itself shown instead of the evidence,
    ``identical_image``. The context length comes from the file's name (``K8``: 8,192 tokens) or from the record.

    Args:
        source: a JSON lines file, or a folder of them.
        images: the folder that image paths start from.
        tasks: the tasks to read.
        lengths: the context lengths to read, in tokens; all of them if ``None``.
        limit: the most records to read from each file.
        needs_evidence: refuse records whose needle can't be located; otherwise they have no evidence, which is
            enough for the causal test.

    Raises:
        DataError: malformed JSON, missing fields or images, more or fewer placeholders than images, or a needle that
            can't be located; names the file and the line.
    """
    wanted = None if lengths is None else set(lengths)
    unknown = set(tasks) - set(TASKS)
    if unknown:
        raise DataError(f"Unknown tasks {sorted(unknown)}. Expected some of {', '.join(TASKS)}.")
    for path, kind, length in _files(Path(source)):
        if wanted is not None and length is not None and length not in wanted:
            continue
        for number, record in islice(read_jsonl(path, _Record, what="MM-NIAH record"), limit):
            reader = _Reader(f"{path}, line {number}", record, Path(images), length)
            if wanted is None or reader.length in wanted:
                yield from reader.probes(kind, tasks, f"{path.stem}-{number}", needs_evidence=needs_evidence)


def _files(source: Path) -> Iterator[tuple[Path, str, int | None]]:
    if not source.exists():
        raise DataError(f"{source}: no such file or folder. Give MMLongBench's NIAH folder or one of its files.")
    paths = sorted(source.rglob("retrieval-*.jsonl")) if source.is_dir() else [source]
    found = [(path, match) for path in paths if (match := FILE_NAME.fullmatch(path.name))]
    if not found:
        raise DataError(
            f"{source}: no files named like retrieval-text_test_K8_dep6.jsonl. Detection uses MM-NIAH's retrieval "
            "tasks; counting and reasoning are not read."
        )
    for path, match in found:
        yield path, match[1], int(match[2]) * 1024 if match[2] else None


@dataclass(slots=True)
class _Reader:
    """Turns one record into probes."""

    where: str
    record: _Record
    images: Path
    file_length: int | None

    @property
    def length(self) -> int:
        """The condition, in tokens."""
        length = self.file_length or self.record.meta.context_length
        if length is None:
            raise self._problem("no context length, neither in the file's name (_K8_) nor in meta.context_length")
        return length

    def probes(self, kind: str, tasks: Sequence[str], name: str, *, needs_evidence: bool) -> Iterator[Probe]:
        """The record's probes."""
        if kind == "text":
            probe = self._text_probe(name, needs_evidence=needs_evidence)
            if "text" in tasks:
                yield probe
            if "rendered_text" in tasks and probe.evidence:
                yield as_rendered_text(probe)
            return
        probe = self._image_probe(name, needs_evidence=needs_evidence)
        if "image" in tasks:
            yield probe
        if "identical_image" in tasks and probe.evidence:
            yield as_identical_image(probe)

    def _problem(self, text: str) -> DataError:
        return DataError(f"{self.where}: {text}.")

    def _page(self, relative: str) -> Page:
        path = self.images / relative
        if not path.is_file():
            raise self._problem(f"the image {relative!r} is missing below {self.images}; unpack the images of the set")
        return Page(image=path, doc_id=relative)

    def _items(self, text: str, pictures: list[Page]) -> list[Page]:
        items: list[Page] = []
        for index, part in enumerate(text.split(PLACEHOLDER)):
            if index:
                items.append(pictures.pop(0))
            if part.strip():
                items.append(Page(text=part.strip()))
        return items

    def _parts(self) -> tuple[list[Page], tuple[str | Page, ...]]:
        text = self.record.text
        if not text:
            raise self._problem("no context: expected ctxs (a list of {'text': ...}) or context")
        asked = self.record.question
        placeholders = text.count(PLACEHOLDER) + asked.count(PLACEHOLDER)
        if placeholders != len(self.record.image_list):
            raise self._problem(
                f"{placeholders} {PLACEHOLDER} placeholders in context and question, {len(self.record.image_list)} "
                "images in image_list; there must be as many"
            )
        pictures = [self._page(relative) for relative in self.record.image_list]
        items = self._items(text, pictures)
        question: list[str | Page] = []
        for index, part in enumerate(asked.split(PLACEHOLDER)):
            if index:
                question.append(pictures.pop(0))
            if part:
                question.append(part)
        return items, tuple(question)

    def _depth(self) -> float:
        given = self.record.depth if self.record.depth is not None else self.record.meta.placed_depth
        first = given[0] if isinstance(given, list) and given else given
        return min(1.0, max(0.0, float(first))) if isinstance(first, (int, float)) else 0.0

    def _needles(self) -> list[str]:
        return self.record.needles or self.record.meta.needles or self.record.needle_image_list or []

    def _text_probe(self, name: str, *, needs_evidence: bool) -> Probe:
        items, question = self._parts()
        evidence = []
        for needle in self._needles():
            found = ((index, item.text.find(needle)) for index, item in enumerate(items) if item.text is not None)
            hit = next(((index, start) for index, start in found if start >= 0), None)
            if hit is not None:
                index, start = hit
                evidence.append(Evidence(index, start, start + len(needle)))
        if needs_evidence and not evidence:
            raise self._problem(
                f"the needle can't be located: expected needles (or meta.needles) with texts of the context, "
                f"got {self._needles()!r}"
            )
        answer = str(self.record.answer)
        choices = tuple(self.record.choices or self.record.meta.choices or ())
        choices = choices if answer in choices else ()
        return Probe(
            "text", name, tuple(items), question, tuple(evidence), answer, self.length, self._depth(), choices=choices
        )

    def _image_probe(self, name: str, *, needs_evidence: bool) -> Probe:
        items, question = self._parts()
        named = self.record.choices_image or self.record.meta.choices_image_path or []
        options = tuple(self._page(relative) for relative in named)
        letters = tuple(LETTERS[: len(options)])
        right = self.record.answer
        if isinstance(right, str):
            letter = right.strip().upper()
            right = letters.index(letter) if letter in letters else -1
        if not 0 <= right < len(options):
            raise self._problem(
                f"the answer {self.record.answer!r} names none of {len(options)} image choices; expected its "
                "index from 0, or its letter, and choices_image"
            )
        names = {Path(needle).name for needle in self._needles()}
        evidence = [
            Evidence(index)
            for index, item in enumerate(items)
            if item.image is not None and Path(str(item.doc_id)).name in names
        ]
        if needs_evidence and not evidence:
            raise self._problem(
                f"the needle can't be located: expected needles (or meta.needles, needle_image_list) with the path of "
                f"an image in the context, got {self._needles()!r}"
            )
        return Probe(
            "image",
            name,
            tuple(items),
            question,
            tuple(evidence),
            letters[right],
            self.length,
            self._depth(),
            options=options,
            choices=letters,
        )


def as_rendered_text(probe: Probe) -> Probe:
    """A ``text`` probe with its needle cut out of the passage and shown there as a picture of the sentence.

    Raises:
        DataError: a probe whose evidence is not a part of a text.
    """
    if not probe.evidence or any(span.start is None for span in probe.evidence):
        raise DataError(f"Probe {probe.name!r} has no needle in a text that could be rendered.")
    items: list[Page] = []
    evidence: list[Evidence] = []
    for index, item in enumerate(probe.items):
        spans = probe.parts_of(index)
        if not spans or item.text is None:
            items.append(item)
            continue
        done = 0
        for start, stop in spans:
            items += _text_page(item.text[done:start])
            evidence.append(Evidence(len(items)))
            items.append(Page(image=RenderedText(item.text[start:stop].strip()), doc_id="needle"))
            done = stop
        items += _text_page(item.text[done:])
    return Probe(
        "rendered_text",
        f"{probe.name}-rendered",
        tuple(items),
        probe.question,
        tuple(evidence),
        probe.answer,
        probe.context_length,
        probe.depth,
        choices=probe.choices,
    )


def as_identical_image(probe: Probe) -> Probe:
    """An ``image`` probe that shows the right option itself instead of the picture that it was pasted into.

    Raises:
        DataError: a probe without options or evidence.
    """
    if not probe.options or not probe.evidence:
        raise DataError(f"Probe {probe.name!r} has no picture that could be shown itself.")
    needle = picture_of(probe.options[probe.choices.index(probe.answer)])
    index = probe.evidence[0].item
    items = (*probe.items[:index], needle, *probe.items[index + 1 :])
    return Probe(
        "identical_image",
        f"{probe.name}-identical",
        items,
        was_shown(needle),
        (Evidence(index),),
        "yes",
        probe.context_length,
        probe.depth,
        choices=("yes", "no"),
    )


def _text_page(text: str) -> list[Page]:
    return [Page(text=text.strip())] if text.strip() else []
