"""Questions on whole documents for the causal test: a folder of PDFs and a JSON lines file of questions with answers.

A line names its document and holds a question, or several under ``questions``. The field names of MMLongBench-Doc,
SlideVQA and MMDocIR are known beside our own, so that their files can be read after converting them to JSON lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from mmrh_retriever.errors import DataError
from mmrh_retriever.pdf.reader import read_pdf
from mmrh_retriever.research.probes.builder import CountTokens, Evidence, Probe
from mmrh_retriever.research.probes.prompts import ProbePrompt
from mmrh_retriever.settings import PromptOptions
from mmrh_retriever.types import Page

TASK = "long_document"
UNANSWERABLE = "not answerable"
SHORTEST_CONDITION = 1024
"""Documents are filed under the power of two at or above their tokens, from here."""
DOCUMENT_PROMPT = ProbePrompt(ranking=PromptOptions(instruction="Read the following pages, then answer the question."))
"""The wording for questions on documents: pages laid as in a ranking, but to be answered from."""


class _Outside(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Question(_Outside):
    question: str = Field(min_length=1, validation_alias=AliasChoices("question", "Q"))
    answer: str | int | float | list[str | int | float] = Field(validation_alias=AliasChoices("answer", "answers", "A"))
    pages: list[int] | None = Field(default=None, validation_alias=AliasChoices("pages", "page_id"))
    """0-based places of the evidence."""
    choices: list[str] = []


class _Document(_Outside):
    document: str = Field(
        min_length=1, validation_alias=AliasChoices("document", "doc_name", "doc_id", "deck_name", "file")
    )
    questions: list[dict[str, Any]] | None = None


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
        questions: one object a line: ``document`` (a file name below ``documents``), ``question``, ``answer`` (or a
            list of accepted ones) and, if known, ``pages`` (0-based places of the evidence); or ``document`` and a
            list ``questions`` of such.
        documents: the folder of PDFs.
        count: tokens that a page takes; documents are filed by their length with it, and by 512 a page without.
        limit: at most so many questions.
        max_pages: only the first so many pages of each document; questions whose evidence lies behind are left out.

    Raises:
        DataError: names the file and line: malformed or truncated JSON, missing fields, a missing document, an evidence
            page that the document does not have, or nothing to ask.
        PageError: a PDF that can't be read.
    """
    path, folder = Path(questions), Path(documents)
    given = 0
    held: tuple[str, tuple[Page, ...], int] | None = None
    for number, name, record in _questions(path):
        if limit is not None and given >= limit:
            return
        if held is None or held[0] != name:
            pages = _pages(path, number, folder, name)[:max_pages]
            held = (name, pages, _condition(pages, count))
        probe = _probe(f"{path}, line {number}", record, held, given, cut=max_pages is not None)
        if probe is not None:
            given += 1
            yield probe
    if given == 0:
        raise DataError(f"{path}: holds no questions to ask. Expected one JSON object a line.")


def _questions(path: Path) -> Iterator[tuple[int, str, _Question]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read ({error}). Expected UTF-8 JSON lines.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            document = _Document.model_validate_json(line)
            if document.questions is None:
                found = [_Question.model_validate_json(line)]
            else:
                found = [_Question.model_validate(one) for one in document.questions]
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(map(str, problem["loc"])) or "the line"
            raise DataError(
                f"{path}, line {number}: {where}: {problem['msg']}. Expected document, question and answer, or "
                "document and questions; a cut-off line means a truncated file."
            ) from error
        for question in found:
            yield number, document.document, question


def _pages(path: Path, number: int, folder: Path, name: str) -> tuple[Page, ...]:
    file = folder / name
    if not file.is_file() and not name.lower().endswith(".pdf"):
        file = folder / f"{name}.pdf"
    if not file.is_file():
        raise DataError(f"{path}, line {number}: the document {name!r} is missing in {folder}. Put the PDF there.")
    return tuple(read_pdf(file))


def _condition(pages: tuple[Page, ...], count: CountTokens | None) -> int:
    tokens = 512 * len(pages) if count is None else sum(map(count, pages))
    condition = SHORTEST_CONDITION
    while condition < tokens:
        condition *= 2
    return condition


def _probe(
    where: str, record: _Question, held: tuple[str, tuple[Page, ...], int], number: int, *, cut: bool
) -> Probe | None:
    """The probe, or nothing where the evidence was cut off."""
    name, pages, condition = held
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
        context_length=condition,
        depth=gold[0] / max(1, len(pages) - 1) if gold else 0.0,
        choices=tuple(record.choices) if texts[0] in record.choices else (),
        labelled=True,
        accepted=tuple(texts[1:]),
    )
