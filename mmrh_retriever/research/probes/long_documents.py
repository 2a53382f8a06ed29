"""Questions on whole documents for the causal test: a folder of PDFs and a JSON lines file of questions with answers.

A line names its document and holds a question, or several under ``questions``. The field names of MMLongBench-Doc,
SlideVQA and MMDocIR are known beside our own, so that their files can be read after converting them to JSON lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from mmrh_retriever.errors import DataError
from mmrh_retriever.files import read_jsonl
from mmrh_retriever.pdf.reader import read_pdf
from mmrh_retriever.research.probes.probe import CountTokens, Evidence, Probe, page_depth
from mmrh_retriever.research.probes.prompts import ProbePrompt
from mmrh_retriever.settings import PromptOptions
from mmrh_retriever.types import Page

TASK = "long_document"
UNANSWERABLE = "not answerable"
SHORTEST_CONDITION = 1024
"""Documents are filed under the power of two at or above their tokens, from here."""
DOCUMENT_PROMPT = ProbePrompt(ranking=PromptOptions(instruction="Read the following pages, then answer the question."))
"""The wording for questions on documents: pages as in a ranking, but to be answered from."""


class _Question(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    question: str = Field(min_length=1, validation_alias=AliasChoices("question", "Q"))
    answer: str | int | float | list[str | int | float] = Field(validation_alias=AliasChoices("answer", "answers", "A"))
    pages: list[int] | None = Field(default=None, validation_alias=AliasChoices("pages", "page_id"))
    """Indices of the pages with the evidence, from 0."""
    choices: list[str] = []


class _Line(BaseModel):
    """A document with its questions, or with a single one beside it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    document: str = Field(
        min_length=1, validation_alias=AliasChoices("document", "doc_name", "doc_id", "deck_name", "file")
    )
    questions: list[_Question]

    @model_validator(mode="before")
    @classmethod
    def _single_question(cls, given: Any) -> Any:
        single = isinstance(given, dict) and given.get("questions") is None
        return {**given, "questions": [given]} if single else given


@dataclass(frozen=True, slots=True)
class _Document:
    """A document as it is shown, and the context length that its probes count for."""

    name: str
    pages: tuple[Page, ...]
    condition: int


def read_long_documents(
    questions: str | Path,
    documents: str | Path,
    count: CountTokens | None = None,
    *,
    limit: int | None = None,
    max_pages: int | None = None,
) -> Iterator[Probe]:
    """Probes whose items are a PDF's pages: the questions of a JSON lines file in its order.

    Args:
        questions: one object per line: ``document`` (a file name below ``documents``), ``question``, ``answer`` (or a
            list of accepted ones) and, if known, ``pages`` (indices of the pages with the evidence, from 0). Or
            ``document`` and a list of such ``questions``.
        documents: the folder of PDFs.
        count: how many tokens a page takes; 512 if not given. Documents are filed by their length.
        limit: the most questions to ask.
        max_pages: the most pages of each document to show; questions whose evidence stands behind are left out.

    Raises:
        DataError: malformed JSON, missing fields, a missing document, evidence on a page that the document does not
            have, or nothing to ask; names the file and the line.
        PageError: a PDF that can't be read.
    """
    path, folder = Path(questions), Path(documents)
    given = 0
    shown: _Document | None = None
    for number, line in read_jsonl(path, _Line, what="question on a document"):
        where = f"{path}, line {number}"
        for question in line.questions:
            if limit is not None and given >= limit:
                return
            if shown is None or shown.name != line.document:
                pages = _pages(where, folder, line.document)[:max_pages]
                shown = _Document(line.document, pages, _condition(pages, count))
            probe = _probe(where, question, shown, given, cut=max_pages is not None)
            if probe is not None:
                given += 1
                yield probe
    if given == 0:
        raise DataError(f"{path}: holds no questions to ask. Expected one JSON object per line.")


def _pages(where: str, folder: Path, name: str) -> tuple[Page, ...]:
    file = folder / name
    if not file.is_file() and not name.lower().endswith(".pdf"):
        file = folder / f"{name}.pdf"
    if not file.is_file():
        raise DataError(f"{where}: the document {name!r} is missing in {folder}. Put the PDF there.")
    return tuple(read_pdf(file))


def _condition(pages: tuple[Page, ...], count: CountTokens | None) -> int:
    tokens = 512 * len(pages) if count is None else sum(map(count, pages))
    condition = SHORTEST_CONDITION
    while condition < tokens:
        condition *= 2
    return condition


def _probe(where: str, record: _Question, document: _Document, number: int, *, cut: bool) -> Probe | None:
    """The probe, or ``None`` where the evidence was cut off."""
    name, pages = document.name, document.pages
    answers = record.answer if isinstance(record.answer, list) else [record.answer]
    texts = [str(answer) for answer in answers if str(answer).strip()]
    if not texts:
        raise DataError(
            f"{where}: no answer to compare with. Give a text; for questions without one, {UNANSWERABLE!r}."
        )
    gold = record.pages or []
    outside = [page for page in gold if not 0 <= page < len(pages)]
    if outside and cut:
        return None
    if outside:
        raise DataError(f"{where}: evidence on pages {outside}, counted from 0; {name} has {len(pages)} pages.")
    return Probe(
        task=TASK,
        name=f"{name}-{number}",
        items=pages,
        question=(record.question,),
        evidence=tuple(Evidence(page) for page in dict.fromkeys(gold)),
        answer=texts[0],
        context_length=document.condition,
        depth=page_depth(gold, len(pages)),
        choices=tuple(record.choices) if texts[0] in record.choices else (),
        labelled=True,
        accepted=tuple(texts[1:]),
    )
