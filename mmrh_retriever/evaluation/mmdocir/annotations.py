"""The annotations file of MMDocIR: documents, their questions, and where the evidence is.

One JSON object per line and document; source and format as in :mod:`mmrh_retriever.evaluation.mmdocir.dataset`.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mmrh_retriever.errors import DataError
from mmrh_retriever.files import Finite, read_jsonl
from mmrh_retriever.types import Box

Index = Annotated[int, Field(ge=0)]
Side = Annotated[float, Field(gt=0, allow_inf_nan=False)]
RowRange = tuple[Index, Index]


class _Line(BaseModel):
    """Parts of the annotations file; fields that we don't know are left alone."""

    model_config = ConfigDict(strict=True, frozen=True)


class LayoutEntry(_Line):
    """A box that holds evidence."""

    page: Index
    page_size: tuple[Side, Side]
    bbox: tuple[Finite, Finite, Finite, Finite]

    @field_validator("bbox")
    @classmethod
    def _in_order(cls, box: Box) -> Box:
        if box[0] > box[2] or box[1] > box[3]:
            raise ValueError("a box is [x0, y0, x1, y1] with x0 <= x1 and y0 <= y1")
        return box


class QuestionEntry(_Line):
    """A question with its answer and evidence."""

    Q: Annotated[str, Field(min_length=1)]
    A: str = ""
    page_id: Annotated[list[Index], Field(min_length=1)]
    type: list[str] = []
    layout_mapping: list[LayoutEntry] = []

    @field_validator("type", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        """The official file writes the list of types as a string."""
        if not isinstance(value, str):
            return value
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise ValueError("types are a list of texts, such as ['Table']") from error


class DocumentEntry(_Line):
    """A line of the annotations file."""

    doc_name: Annotated[str, Field(min_length=1)]
    domain: Annotated[str, Field(min_length=1)]
    page_indices: RowRange | None = None
    layout_indices: RowRange | None = None
    questions: Annotated[list[QuestionEntry], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class GoldLayout:
    """A box that holds evidence: ``page`` from 0, ``box`` in the units of ``page_size`` (width, height)."""

    page: int
    box: Box
    page_size: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a document. ``pages`` are the gold pages from 0, each once; ``types`` kinds of evidence."""

    number: int
    text: str
    answer: str
    pages: tuple[int, ...]
    types: tuple[str, ...]
    layouts: tuple[GoldLayout, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A document with its questions.

    ``page_rows`` and ``layout_rows`` are its rows in the official parquet files, half-open; ``None`` where the
    annotations don't say. ``line`` is its line in the annotations file, from 1.
    """

    name: str
    domain: str
    questions: tuple[Question, ...]
    line: int
    page_rows: range | None = None
    layout_rows: range | None = None


def read_annotations(path: str | Path) -> list[Document]:
    """Documents and questions from an annotations file, one JSON object per line.

    Raises:
        DataError: missing file, no documents, or a malformed line; names file, line and field.
    """
    path = Path(path)
    documents: dict[str, Document] = {}
    for number, entry in read_jsonl(path, DocumentEntry, what="annotated document"):
        if entry.doc_name in documents:
            first = documents[entry.doc_name].line
            raise DataError(f"{path}, line {number}: {entry.doc_name} stands on line {first} already. Join the two.")
        documents[entry.doc_name] = _document(entry, number, path)
    if not documents:
        raise DataError(f"{path}: holds no documents. Expected one JSON object per line.")
    return list(documents.values())


def _document(entry: DocumentEntry, line: int, path: Path) -> Document:
    return Document(
        name=entry.doc_name,
        domain=entry.domain,
        questions=tuple(_question(item, number) for number, item in enumerate(entry.questions)),
        line=line,
        page_rows=_half_open(entry.page_indices, path, line),
        layout_rows=_half_open(entry.layout_indices, path, line),
    )


def _question(entry: QuestionEntry, number: int) -> Question:
    return Question(
        number=number,
        text=entry.Q,
        answer=entry.A,
        pages=tuple(dict.fromkeys(entry.page_id)),
        types=tuple(dict.fromkeys(entry.type)),
        layouts=tuple(GoldLayout(item.page, item.bbox, item.page_size) for item in entry.layout_mapping),
    )


def _half_open(given: RowRange | None, path: Path, line: int) -> range | None:
    if given is None:
        return None
    if given[1] < given[0]:
        raise DataError(f"{path}, line {line}: rows {list(given)} run backwards. Expected [first, last].")
    return range(given[0], given[1] + 1)
