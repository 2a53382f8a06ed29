"""Reader for MM-NIAH as MMLongBench ships it: JSON lines of needle questions on interleaved texts and images.

MM-NIAH is Wang et al. 2024, arXiv 2406.07230; MMLongBench, Wang et al. 2025, arXiv 2505.10610, re-cuts it to five
context lengths and six needle depths in files named like ``retrieval-text_test_K8_dep6.jsonl``. Neither is part of
this package; ``docs/heads.md`` says where to get them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from mmrh_retriever.errors import DataError
from mmrh_retriever.files import is_file, is_folder, read_jsonl
from mmrh_retriever.research.probes.haystacks import RenderedText, picture_of
from mmrh_retriever.research.probes.probe import LETTERS, TASKS, Evidence, Probe, was_shown
from mmrh_retriever.types import Page

PLACEHOLDER = "<image>"
FILE_NAME = re.compile(r"retrieval-(text|image).*?(?:_K(\d+))?(?:_dep\d+)?\.jsonl")


class _Passage(BaseModel):
    text: str


class _Needle(BaseModel):
    """A text, or an image by its path below ``mm-niah/``."""

    text: str = ""
    image: str | None = None


class _Record(BaseModel):
    """One line, in MMLongBench's form (``ctxs``) or the original one (``context``, and much of it under ``meta``).

    The needle is what ``positive_ctxs`` says, if anything: ``needle_image_list`` may hold the right option's picture.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: int | str
    question: str = Field(min_length=1)
    answer: str | int
    ctxs: list[_Passage] | None = None
    context: str = ""
    image_list: list[str] = Field(default=[], validation_alias=AliasChoices("image_list", "images_list"))
    depth: float | None = Field(default=None, ge=0.0, le=1.0)
    placed_depth: float | list[float] = 0.0
    context_length: int | None = Field(default=None, ge=1)
    positive_ctxs: list[_Needle] = []
    needles: list[str] = Field(default=[], validation_alias=AliasChoices("needles", "needle_image_list"))
    choices: list[str] = []
    choices_image: list[str] = Field(default=[], validation_alias=AliasChoices("choices_image", "choices_image_path"))
    meta: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, given: Any) -> Any:
        """What stands under ``meta`` counts where the record itself says nothing."""
        meta = given.get("meta") if isinstance(given, dict) else None
        levels = [level for level in (meta, given) if isinstance(level, dict)]
        flat = {name: value for level in levels for name, value in level.items() if value not in (None, [])}
        return flat if levels else given


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
        needs_evidence: refuse records whose needle can't be located; the causal test does without evidence.

    Raises:
        DataError: malformed JSON, missing fields or images, more or fewer placeholders than images, or a needle that
            can't be located; names the file and the line.
    """
    wanted = None if lengths is None else set(lengths)

    def passed_over(length: int | None) -> bool:
        return wanted is not None and length is not None and length not in wanted

    unknown = set(tasks) - set(TASKS)
    if unknown:
        raise DataError(f"Unknown tasks {sorted(unknown)}. Expected some of {', '.join(TASKS)}.")
    for path, kind, file_length in _files(Path(source)):
        lines = () if passed_over(file_length) else read_jsonl(path, _Record, what="MM-NIAH record")
        for number, record in islice(lines, limit):
            length = file_length or record.context_length
            if passed_over(length):
                continue
            try:
                name = f"{path.stem}-{number}"
                probe = _probe(record, kind, name, length, Path(images), needs_evidence=needs_evidence)
            except DataError as error:
                raise DataError(f"{path}, line {number}: {error}") from error
            if kind in tasks:
                yield probe
            derived = "rendered_text" if kind == "text" else "identical_image"
            if derived in tasks and probe.evidence:
                yield as_rendered_text(probe) if kind == "text" else as_identical_image(probe)


def _files(source: Path) -> list[tuple[Path, str, int | None]]:
    """The files, each with its task and its context length."""
    if not (is_file(source) or is_folder(source)):
        raise DataError(f"{source}: no such file or folder. Give MMLongBench's NIAH folder or one of its files.")
    paths = sorted(source.rglob("retrieval-*.jsonl")) if is_folder(source) else [source]
    found = [(path, match) for path in paths if (match := FILE_NAME.fullmatch(path.name))]
    if not found:
        raise DataError(
            f"{source}: no files named like retrieval-text_test_K8_dep6.jsonl. Detection uses MM-NIAH's retrieval "
            "tasks; counting and reasoning are not read."
        )
    return [(path, match[1], int(match[2]) * 1024 if match[2] else None) for path, match in found]


def _probe(record: _Record, task: str, name: str, length: int | None, images: Path, *, needs_evidence: bool) -> Probe:
    if length is None:
        raise DataError("no context length, neither in the file's name (_K8_) nor in meta.context_length.")
    items, question = _context_and_question(record, images)
    options: tuple[Page, ...] = ()
    if task == "image":
        options = tuple(_page(images, path) for path in record.choices_image)
        choices = tuple(LETTERS[: len(options)])
        answer, evidence = _letter(record.answer, choices), _found_images(record, items)
    else:
        needles = [needle.text.strip() for needle in record.positive_ctxs] or record.needles
        answer, evidence = str(record.answer), [one for needle in needles for one in _found_text(needle, items)]
        choices = tuple(record.choices) if answer in record.choices else ()
    if needs_evidence and not evidence:
        said = [needle.image or needle.text for needle in record.positive_ctxs] or record.needles
        raise DataError(
            "the needle can't be located: expected positive_ctxs (or needles, meta.needles, needle_image_list) with "
            f"texts or image paths of the context, got {said!r}."
        )
    placed = record.placed_depth if isinstance(record.placed_depth, float) else record.placed_depth[0]
    depth = min(1.0, max(0.0, placed)) if record.depth is None else record.depth
    return Probe(task, name, items, question, tuple(evidence), answer, length, depth, options, choices)


def _context_and_question(record: _Record, images: Path) -> tuple[tuple[Page, ...], tuple[str | Page, ...]]:
    context, asked = record.context, record.question
    if record.ctxs is not None:
        context = "\n\n".join(passage.text for passage in record.ctxs)
    if not context:
        raise DataError("no context: expected ctxs (a list of {'text': ...}) or context.")
    placeholders = context.count(PLACEHOLDER) + asked.count(PLACEHOLDER)
    if placeholders != len(record.image_list):
        raise DataError(
            f"{placeholders} {PLACEHOLDER} placeholders in context and question, {len(record.image_list)} images in "
            "image_list; there must be as many."
        )
    pictures = iter([_page(images, path) for path in record.image_list])
    items = [
        page
        for part in _with_pictures(context, pictures)
        for page in ([part] if isinstance(part, Page) else _text_pages(part))
    ]
    return tuple(items), tuple(part for part in _with_pictures(asked, pictures) if part)


def _page(images: Path, relative: str) -> Page:
    path = images / relative
    if not is_file(path):
        raise DataError(f"the image {relative!r} is missing below {images}; unpack the images of the set.")
    return Page(image=path, doc_id=relative)


def _letter(answer: str | int, choices: Sequence[str]) -> str:
    """The right option's letter, from that or from the option's index."""
    letter = answer.strip().upper() if isinstance(answer, str) else dict(enumerate(choices)).get(answer)
    if letter not in choices:
        raise DataError(
            f"the answer {answer!r} names none of {len(choices)} image choices; expected its index from 0, or its "
            "letter, and choices_image."
        )
    return str(letter)


def _found_images(record: _Record, items: Sequence[Page]) -> list[Evidence]:
    """The pictures that are needles: by their path in ``positive_ctxs``, or else by the file names of ``needles``."""
    paths = tuple(f"/{needle.image}" for needle in record.positive_ctxs if needle.image)
    names = () if record.positive_ctxs else {Path(needle).name for needle in record.needles}
    shown = [(index, f"/{item.doc_id}") for index, item in enumerate(items) if item.image is not None]
    return [Evidence(index) for index, path in shown if path.endswith(paths) or Path(path).name in names]


def _found_text(needle: str, items: Sequence[Page]) -> Iterator[Evidence]:
    """Where a needle stands first, if it does."""
    starts = ((index, item.text.find(needle)) for index, item in enumerate(items) if item.text is not None)
    found = (Evidence(index, start, start + len(needle)) for index, start in starts if start >= 0)
    return islice(found, 1)


def _with_pictures(text: str, pictures: Iterator[Page]) -> Iterator[str | Page]:
    """A text's parts, with the next picture in place of each placeholder."""
    for index, part in enumerate(text.split(PLACEHOLDER)):
        if index:
            yield next(pictures)
        yield part


def _text_pages(text: str) -> list[Page]:
    return [Page(text=text.strip())] if text.strip() else []


def as_rendered_text(probe: Probe) -> Probe:
    """A ``text`` probe with its needle cut out of the passage and shown there as a picture of the sentence."""
    if not probe.evidence or any(span.start is None for span in probe.evidence):
        raise DataError(f"Probe {probe.name!r} has no needle in a text that could be rendered.")
    items: list[Page] = []
    evidence: list[Evidence] = []
    for index, item in enumerate(probe.items):
        items += [] if probe.stretches(index) else [item]
        for text, is_needle in probe.stretches(index):
            if is_needle:
                evidence.append(Evidence(len(items)))
            items += [Page(image=RenderedText(text.strip()), doc_id="needle")] if is_needle else _text_pages(text)
    name = f"{probe.name}-rendered"
    return replace(probe, task="rendered_text", name=name, items=tuple(items), evidence=tuple(evidence))


def as_identical_image(probe: Probe) -> Probe:
    """An ``image`` probe that shows the right option itself instead of the picture that it was pasted into."""
    if not probe.options or not probe.evidence:
        raise DataError(f"Probe {probe.name!r} has no picture that could be shown itself.")
    needle = picture_of(probe.options[probe.choices.index(probe.answer)])
    index = probe.evidence[0].item
    return replace(
        probe,
        task="identical_image",
        name=f"{probe.name}-identical",
        items=(*probe.items[:index], needle, *probe.items[index + 1 :]),
        question=was_shown(needle),
        evidence=(Evidence(index),),
        answer="yes",
        options=(),
        choices=("yes", "no"),
    )
