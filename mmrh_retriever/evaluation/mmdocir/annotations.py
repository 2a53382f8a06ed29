"""The annotations file of MMDocIR: documents, their questions, and where the evidence is.

One JSON object per line and document; source and format as in :mod:`mmrh_retriever.evaluation.mmdocir.dataset`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from mmrh_retriever.errors import DataError
from mmrh_retriever.files import Finite, read_jsonl
from mmrh_retriever.types import Box

Index = Annotated[int, Field(ge=0)]
Side = Annotated[float, Field(gt=0, allow_inf_nan=False)]
RowRange = tuple[Index, Index]

_TEXT = r"(?:'[^'\\]*'|\"[^\"\\]*\")"
_TEXT_LIST = re.compile(rf"\[\s*(?:{_TEXT}\s*(?:,\s*{_TEXT}\s*)*)?\]")
_WORD = re.compile(r"\w[\w.-]*")


def _some(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("at least one is needed")
    return values


class _Annotated(BaseModel):
    """A part of the annotations, under names of ours; fields of the file that we don't know are left alone."""

    model_config = ConfigDict(strict=True, frozen=True, populate_by_name=True)


class GoldLayout(_Annotated):
    """A box that holds evidence: ``page`` from 0, ``box`` in the units of ``page_size`` (width, height).

    The official file has one without area.
    """

    page: Index
    box: Annotated[tuple[Finite, Finite, Finite, Finite], Field(alias="bbox")]
    page_size: tuple[Side, Side]

    @field_validator("box")
    @classmethod
    def _in_order(cls, box: Box) -> Box:
        if box[0] > box[2] or box[1] > box[3]:
            raise ValueError("a box is [x0, y0, x1, y1] with x0 <= x1 and y0 <= y1")
        return box


class Question(_Annotated):
    """A question about a document, which counts its questions from 0.

    ``pages`` are the gold pages from 0, each once; ``types`` kinds of evidence.
    """

    number: int = 0
    text: Annotated[str, Field(alias="Q", min_length=1)]
    answer: Annotated[str, Field(alias="A")] = ""
    pages: Annotated[tuple[Index, ...], Field(alias="page_id"), AfterValidator(_some)]
    types: Annotated[tuple[str, ...], Field(alias="type")] = ()
    layouts: Annotated[tuple[GoldLayout, ...], Field(alias="layout_mapping")] = ()

    @field_validator("types", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        """The official file writes the types as a string: a list of texts (``"['Table']"``), or one word."""
        if not isinstance(value, str):
            return tuple(value) if isinstance(value, list) else value
        if _TEXT_LIST.fullmatch(value):
            return tuple(text[1:-1] for text in re.findall(_TEXT, value))
        if _WORD.fullmatch(value):
            return (value,)
        raise ValueError("a type is a word, such as text-only, or a list of texts, such as ['Chart', 'Table']")

    @field_validator("pages", "types")
    @classmethod
    def _each_once(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(dict.fromkeys(values))


class Document(_Annotated):
    """A document with its questions. ``line`` is its line in the annotations file, from 1."""

    name: Annotated[str, Field(alias="doc_name", min_length=1)]
    domain: Annotated[str, Field(min_length=1)]
    questions: Annotated[tuple[Question, ...], AfterValidator(_some)]
    line: int = 0
    page_indices: RowRange | None = None
    layout_indices: RowRange | None = None

    @field_validator("page_indices", "layout_indices")
    @classmethod
    def _forwards(cls, rows: RowRange | None) -> RowRange | None:
        if rows is not None and rows[1] < rows[0]:
            raise ValueError("rows run backwards; expected [first, last]")
        return rows

    @field_validator("questions")
    @classmethod
    def _numbered(cls, questions: tuple[Question, ...]) -> tuple[Question, ...]:
        return tuple(item.model_copy(update={"number": number}) for number, item in enumerate(questions))

    @property
    def page_rows(self) -> range | None:
        """The document's rows in the official pages file; ``None`` where the annotations don't say."""
        return None if self.page_indices is None else range(self.page_indices[0], self.page_indices[1] + 1)

    @property
    def layout_rows(self) -> range | None:
        """Its rows in the official layouts file, likewise."""
        return None if self.layout_indices is None else range(self.layout_indices[0], self.layout_indices[1] + 1)


def read_annotations(path: str | Path) -> list[Document]:
    """Documents and questions from an annotations file, one JSON object per line."""
    documents: dict[str, Document] = {}
    for line, document in read_jsonl(Path(path), Document, what="annotated document"):
        if document.name in documents:
            first = documents[document.name].line
            raise DataError(f"{path}, line {line}: {document.name} stands on line {first} already. Join the two.")
        documents[document.name] = document.model_copy(update={"line": line})
    if not documents:
        raise DataError(f"{path}: holds no documents. Expected one JSON object per line.")
    return list(documents.values())
