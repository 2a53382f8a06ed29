"""Reader for MM-NIAH as MMLongBench ships it: JSON lines of needle questions on interleaved texts and images.

MM-NIAH is Wang et al. 2024, arXiv 2406.07230; MMLongBench, Wang et al. 2025, arXiv 2505.10610, re-cuts it to five
context lengths and six needle depths in files named like ``retrieval-text_test_K8_dep6.jsonl``. Neither is part of
this package; ``docs/heads.md`` says where to get them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from mmrh_retriever.errors import DataError
from mmrh_retriever.research.probes.builder import TASKS, Evidence, Probe
from mmrh_retriever.research.probes.haystacks import RenderedText, picture_of
from mmrh_retriever.types import Page

PLACEHOLDER = "<image>"
FILE_NAME = re.compile(r"retrieval-(text|image).*?(?:_K(\d+))?(?:_dep\d+)?\.jsonl")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class _Outside(BaseModel):
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
    ``retrieval-image`` files give ``image`` and, with the right option itself put beside the evidence's place,
    ``identical_image``. The context length comes from the file's name (``K8``: 8,192 tokens) or the record.

    Args:
        source: a JSON lines file, or a folder of such.
        images: the folder that image paths start from.
        tasks: which of the four to give.
        lengths: context lengths in tokens to give; all of them if ``None``.
        limit: at most so many records of each file.
        needs_evidence: refuse records whose needle can't be located; otherwise they have no evidence, which is
            enough for the causal test.

    Raises:
        DataError: names the file and the line: malformed JSON, missing fields, missing images, placeholders and
            images of different number, or a needle that can't be located.
    """
    wanted = None if lengths is None else set(lengths)
    unknown = set(tasks) - set(TASKS)
    if unknown:
        raise DataError(f"Unknown tasks {sorted(unknown)}. Expected some of {', '.join(TASKS)}.")
    for path, kind, length in _files(Path(source)):
        if wanted is not None and length is not None and length not in wanted:
            continue
        for number, record in _records(path, limit):
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


def _records(path: Path, limit: int | None) -> Iterator[tuple[int, _Record]]:
    try:
        with path.open(encoding="utf-8") as lines:
            given = 0
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                if limit is not None and given >= limit:
                    return
                given += 1
                yield number, _record(path, number, line)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read ({error}). Expected UTF-8 JSON lines.") from error


def _record(path: Path, number: int, line: str) -> _Record:
    try:
        return _Record.model_validate_json(line)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"])) or "the line"
        cut = "" if line.endswith("\n") else " The file may be cut off here: download it again."
        raise DataError(
            f"{path}, line {number}: {where}: {problem['msg']} (got {str(problem['input'])[:60]!r}). Expected a record "
            f"with id, ctxs (or context), image_list, question and answer.{cut}"
        ) from error


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
        for place, part in enumerate(text.split(PLACEHOLDER)):
            if place:
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
        for place, part in enumerate(asked.split(PLACEHOLDER)):
            if place:
                question.append(pictures.pop(0))
            if part:
                question.append(part)
        return items, tuple(question)

    def _depth(self) -> float:
        placed = self.record.depth if self.record.depth is not None else self.record.meta.placed_depth
        first = placed[0] if isinstance(placed, list) and placed else placed
        return min(1.0, max(0.0, float(first))) if isinstance(first, (int, float)) else 0.0

    def _needles(self) -> list[str]:
        return self.record.needles or self.record.meta.needles or self.record.needle_image_list or []

    def _text_probe(self, name: str, *, needs_evidence: bool) -> Probe:
        items, question = self._parts()
        evidence = []
        for needle in self._needles():
            found = [(place, item.text.find(needle)) for place, item in enumerate(items) if item.text is not None]
            hits = [(place, start) for place, start in found if start >= 0]
            if hits:
                place, start = hits[0]
                evidence.append(Evidence(place, start, start + len(needle)))
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
        right = self.record.answer
        if isinstance(right, str) and right.strip().upper() in LETTERS[: len(options)] and right.strip():
            right = LETTERS.index(right.strip().upper())
        if not isinstance(right, int) or not 0 <= right < len(options):
            raise self._problem(
                f"the answer {self.record.answer!r} names none of {len(options)} image choices; expected its place "
                "from 0, or its letter, and choices_image"
            )
        names = {Path(needle).name for needle in self._needles()}
        evidence = [
            Evidence(place)
            for place, item in enumerate(items)
            if item.image is not None and Path(str(item.doc_id)).name in names
        ]
        if needs_evidence and not evidence:
            raise self._problem(
                f"the needle can't be located: expected needles (or meta.needles, needle_image_list) with the path of "
                f"an image in the context, got {self._needles()!r}"
            )
        letters = tuple(LETTERS[: len(options)])
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
    """A ``text`` probe with its needle cut out of the passage and put in the same place as a picture of the sentence.

    Raises:
        DataError: a probe whose evidence is not a part of a text.
    """
    if not probe.evidence or any(span.start is None for span in probe.evidence):
        raise DataError(f"Probe {probe.name!r} has no needle in a text that could be rendered.")
    items: list[Page] = []
    evidence: list[Evidence] = []
    for place, item in enumerate(probe.items):
        spans = sorted((span.start or 0, span.stop or 0) for span in probe.evidence if span.item == place)
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
    """An ``image`` probe in which the right option itself takes the place of the picture that it was pasted into.

    Raises:
        DataError: a probe without options or evidence.
    """
    if not probe.options or not probe.evidence:
        raise DataError(f"Probe {probe.name!r} has no picture that could be shown itself.")
    needle = picture_of(probe.options[probe.choices.index(probe.answer)])
    place = probe.evidence[0].item
    items = (*probe.items[:place], needle, *probe.items[place + 1 :])
    return Probe(
        "identical_image",
        f"{probe.name}-identical",
        items,
        ("Was the following picture shown above? ", needle, " Answer yes or no."),
        (Evidence(place),),
        "yes",
        probe.context_length,
        probe.depth,
        choices=("yes", "no"),
    )


def _text_page(text: str) -> list[Page]:
    return [Page(text=text.strip())] if text.strip() else []
