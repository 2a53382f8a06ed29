"""Questions on whole documents for the causal test: a folder of PDFs and a JSON lines file of questions with answers.

A line names its document and holds a question, or several under ``questions``. The field names of MMLongBench-Doc,
SlideVQA and MMDocIR are known beside our own, so that their files can be read after converting them to JSON lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mmrh_retriever.errors import DataError
from mmrh_retriever.files import is_file, read_jsonl
from mmrh_retriever.pdf.reader import read_pdf
from mmrh_retriever.research.probes.probe import CountTokens, Evidence, Probe, page_depth
from mmrh_retriever.research.probes.prompts import ProbePrompt
from mmrh_retriever.settings import PromptOptions
from mmrh_retriever.types import Page

SHORTEST_CONDITION = 1024  # documents are filed under the power of two at or above their tokens, from here
DOCUMENT_PROMPT = ProbePrompt(ranking=PromptOptions(instruction="Read the following pages, then answer the question."))


class _Question(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    question: str = Field(min_length=1, validation_alias=AliasChoices("question", "Q"))
    answer: str | int | float | list[str | int | float] = Field(validation_alias=AliasChoices("answer", "answers", "A"))
    pages: Annotated[
        list[int],
        BeforeValidator(lambda pages: [] if pages is None else pages),
        Field(validation_alias=AliasChoices("pages", "page_id")),
    ] = []
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
        questions: one object per line: ``document``, ``question``, ``answer`` (or a list of accepted ones) and, if
            known, ``pages`` (indices of the pages with the evidence). Or ``document`` and a list of such ``questions``.
        documents: the folder of PDFs.
        count: how many tokens a page takes; 512 if not given. Documents are filed by their length.
        limit: the most questions to ask.
        max_pages: the most pages of each document to show; questions whose evidence stands behind are left out.

    Raises:
        DataError: malformed JSON, missing fields, a missing document, evidence on a page that the document does not
            have, or nothing to ask; names the file and the line.
        PageError: a PDF that can't be read.
    """
    given = length = 0
    name: str | None = None
    pages: tuple[Page, ...] = ()
    for number, line in read_jsonl(Path(questions), _Line, what="question on a document"):
        for question in line.questions:
            if limit is not None and given >= limit:
                return
            try:
                if name != line.document:
                    name = line.document
                    pages = tuple(read_pdf(_file(Path(documents), name)))[:max_pages]
                    tokens = 512 * len(pages) if count is None else sum(map(count, pages))
                    length = max(SHORTEST_CONDITION, 1 << (tokens - 1).bit_length())
                if max_pages is not None and any(page >= len(pages) for page in question.pages):
                    continue
                probe = _probe(question, f"{name}-{given}", pages, length)
            except DataError as error:
                raise DataError(f"{questions}, line {number}: {error}") from error
            yield probe
            given += 1
    if given == 0:
        raise DataError(f"{questions}: holds no questions to ask. Expected one JSON object per line.")


def _file(folder: Path, name: str) -> Path:
    for file in (folder / name, folder / f"{name}.pdf"):
        if is_file(file):
            return file
    raise DataError(f"the document {name!r} is missing in {folder}. Put the PDF there.")


def _probe(asked: _Question, name: str, pages: tuple[Page, ...], length: int) -> Probe:
    answers = asked.answer if isinstance(asked.answer, list) else [asked.answer]
    texts = [str(answer) for answer in answers if str(answer).strip()]
    if not texts:
        raise DataError("no answer to compare with. Give a text; for questions without one, 'not answerable'.")
    outside = [page for page in asked.pages if not 0 <= page < len(pages)]
    if outside:
        raise DataError(f"evidence on pages {outside}, counted from 0; the document has {len(pages)} pages.")
    return Probe(
        task="long_document",
        name=name,
        items=pages,
        question=(asked.question,),
        evidence=tuple(map(Evidence, dict.fromkeys(asked.pages))),
        answer=texts[0],
        context_length=length,
        depth=page_depth(asked.pages, len(pages)),
        choices=tuple(asked.choices) if texts[0] in asked.choices else (),
        labelled=True,
        accepted=tuple(texts[1:]),
    )
