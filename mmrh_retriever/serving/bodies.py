"""Bodies of requests: Cohere's, Jina's and vLLM's, which agree on most, TEI's, and our own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, GetJsonSchemaHandler, Tag, model_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import CoreSchema

from mmrh_retriever.types import MAX_INDEX

NO_NUL = r"^[^\x00]*$"
"""The pattern of text without NUL characters."""
NOT_BLANK = r"^[^\x00]*[^\s\x00][^\x00]*$"
"""The pattern of text with something to read in it, and no NUL characters."""
MOST_FIELDS = 64
"""Fields of a body to which nothing unknown may be added."""

Text = Annotated[str, Field(pattern=NO_NUL)]
SaidText = Annotated[str, Field(pattern=NOT_BLANK, min_length=1)]
Picture = Annotated[
    str,
    Field(
        min_length=1, pattern=NO_NUL, description="An image as base64 or a data: URI; a URL where these are allowed."
    ),
]


class Body(BaseModel):
    """A body of ours or a part of one: nothing is converted, nothing unknown is taken."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, given: object) -> object:
        """Each unknown field would be a mistake to describe."""
        if cls.model_config.get("extra") == "forbid" and isinstance(given, Mapping) and len(given) > MOST_FIELDS:
            raise ValueError(f"Expected {MOST_FIELDS} fields at most")
        return given


class OpenBody(Body):
    """A body that others shape: what it holds beside the fields here has no effect."""

    model_config = ConfigDict(extra="ignore")


class TextDocument(OpenBody):
    """A document that is read as text."""

    text: SaidText


class ImageDocument(OpenBody):
    """A page's image, and its text where it is known."""

    image: Picture
    text: Text | None = None


class PdfDocument(OpenBody):
    """A page of a PDF file, counted from 1."""

    pdf: Annotated[str, Field(min_length=1, pattern=NO_NUL, description="The file as base64 or a data: URI.")]
    page: int = Field(1, ge=1, le=MAX_INDEX)


class TextPart(OpenBody):
    """A text among the parts of a document."""

    type: Literal["text"]
    text: Text


class ImageAddress(OpenBody):
    """Where an image is."""

    url: Picture


class ImagePart(OpenBody):
    """An image among the parts of a document."""

    type: Literal["image_url"]
    image_url: ImageAddress


class ContentDocument(OpenBody):
    """A document in parts, as vLLM takes it: texts, and one image at most."""

    content: list[Annotated[TextPart | ImagePart, Field(discriminator="type")]] = Field(
        min_length=1, max_length=64, fail_fast=True
    )


class _AnyOf:
    """Shapes that overlap: their JSON schema is ``anyOf``, where a tagged union's is ``oneOf``."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        found = handler(schema)
        found["anyOf"] = found.pop("oneOf")
        return found


def _kind_of_document(value: object) -> str:
    if not isinstance(value, Mapping):
        return getattr(value, "kind", "string")
    return next((kind for kind in ("pdf", "content", "image") if kind in value), "text")


Document = Annotated[
    Annotated[SaidText, Tag("string")]
    | Annotated[TextDocument, Tag("text")]
    | Annotated[ImageDocument, Tag("image")]
    | Annotated[ContentDocument, Tag("content")]
    | Annotated[PdfDocument, Tag("pdf")],
    Discriminator(_kind_of_document),
    _AnyOf(),
]
"""A text, or an object with ``text``, ``image``, ``content`` or ``pdf``."""


class RerankBody(OpenBody):
    """What Cohere's, Jina's and vLLM's rerank endpoints take. Other fields of theirs have no effect."""

    model: Text | None = Field(None, description="Not read: the server has one model, which the answer names.")
    query: SaidText
    documents: list[Document] = Field(min_length=1, fail_fast=True)
    top_n: int | None = Field(None, ge=1, description="How many results; all by default.")
    return_documents: bool | None = Field(False, description="Give each result the text of its document.")
    max_tokens_per_doc: int | None = Field(None, ge=1, description="Cut texts to so many of the model's tokens.")
    regions: int = Field(0, ge=0, le=100, description="How many of its best regions to give each page. Our own.")


class TeiBody(Body):
    """What the rerank endpoint of Text Embeddings Inference takes."""

    query: SaidText
    texts: list[SaidText] = Field(min_length=1, fail_fast=True)
    raw_scores: bool = Field(False, description="Not read: scores are as they are in either case.")
    return_text: bool = False
    truncate: bool | None = Field(False, description="Cut texts that are too long for the model, instead of refusing.")
    truncation_direction: Literal["Left", "left", "Right", "right"] = Field("Right", description="Only the right end.")


FileId = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="A file's id: the SHA-256 of its content.")]


class RankBody(Body):
    """What ``/v1/rank`` takes: one ``query`` or several ``queries``, and the files whose pages are ranked for them."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["query"]}, {"required": ["queries"]}]})

    query: SaidText | SkipJsonSchema[None] = None
    queries: Annotated[list[SaidText], Field(min_length=1, fail_fast=True)] | SkipJsonSchema[None] = None
    files: list[FileId] = Field(min_length=1, fail_fast=True, description="Each file counts once.")
    top_n: int | None = Field(None, ge=1, description="How many pages per question; all by default.")
    regions: int = Field(0, ge=0, le=100, description="How many of its best regions to give each page.")
    pages: str | None = Field(
        None,
        pattern=r"^ *[0-9]{1,9} *(- *([0-9]{1,9})? *)?(, *[0-9]{1,9} *(- *([0-9]{1,9})? *)?)*$",
        max_length=1000,
        description="Which pages of each file, counted from 1, such as '1-3,7' or '12-'; all by default.",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> RankBody:
        given = self.model_fields_set & {"query", "queries"}
        if len(given) != 1 or getattr(self, next(iter(given))) is None:
            raise ValueError("expected either query or queries")
        return self

    @property
    def questions(self) -> list[str]:
        """All questions."""
        return [*(self.queries or ()), *([self.query] if self.query is not None else ())]
