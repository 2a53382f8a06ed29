"""Files that are uploaded once and asked many questions: ``/v1/files``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from fastapi import APIRouter, File, Path, UploadFile
from pydantic import Field

from mmrh_retriever.adapters.clues import PageClues
from mmrh_retriever.library.records import PageRecord
from mmrh_retriever.pdf.backends import backend_of, choose_backend, finds_layout
from mmrh_retriever.pdf.pdf_file import begins_a_pdf
from mmrh_retriever.pdf.reader import iter_pdf
from mmrh_retriever.runs.plain_text import plain_text
from mmrh_retriever.serving.answers import Answer
from mmrh_retriever.serving.bodies import FileId
from mmrh_retriever.serving.errors import RequestError, refusals
from mmrh_retriever.serving.file_store import FileRecord, content_id
from mmrh_retriever.serving.service import Service, ServiceOf
from mmrh_retriever.types import Page

router = APIRouter(tags=["files"])

_LONGEST_NAME = 200


class PageAnswer(Answer):
    """A page of a file: its number (from 1), its printed label, and its size in points of a PDF, else in pixels."""

    page: int
    label: str | None = None
    width: float
    height: float


class FileSummary(Answer):
    """A file: its id is the SHA-256 of its content."""

    id: str
    object: Literal["file"] = "file"
    name: str
    kind: Literal["pdf", "image"]
    bytes: int
    page_count: int


class FileAnswer(FileSummary):
    """A file with its pages."""

    pages: list[PageAnswer]


class FilesAnswer(Answer):
    """All files, those used last first."""

    object: Literal["list"] = "list"
    data: list[FileSummary]


class DeletedAnswer(Answer):
    """A file that was deleted."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = Field(True)


@router.post("/v1/files", responses=refusals(400, 413, 422), response_model_exclude_none=True)
async def upload(file: Annotated[UploadFile, File(description="A PDF or an image.")], service: ServiceOf) -> FileAnswer:
    """Upload a PDF or an image. It is read now, in a process of its own, and can then be asked with ``/v1/rank``."""
    content = await file.read()
    record = await _read_file(content, _plain_name(file.filename), service)
    await service.read(service.files.add, record, content)
    return _described(record)


@router.get("/v1/files", responses=refusals())
async def list_files(service: ServiceOf) -> FilesAnswer:
    """All files that are there."""
    records = await service.read(service.files.records)
    return FilesAnswer(data=[FileSummary(**_summary(record)) for record in records])


@router.get("/v1/files/{file_id}", responses=refusals(404, 422), response_model_exclude_none=True)
async def describe(file_id: Annotated[FileId, Path()], service: ServiceOf) -> FileAnswer:
    """What is known of a file."""
    return _described(await service.read(service.files.record, file_id))


@router.delete("/v1/files/{file_id}", responses=refusals(404, 422))
async def delete(file_id: Annotated[FileId, Path()], service: ServiceOf) -> DeletedAnswer:
    """Delete a file. Its encoded pages go when room is needed."""
    if not await service.read(service.files.delete, file_id):
        raise RequestError(404, "There is no such file.")
    return DeletedAnswer(id=file_id)


async def _read_file(content: bytes, name: str, service: Service) -> FileRecord:
    """What an uploaded file holds, page by page, so that a request that ends stops the reading, too."""
    if begins_a_pdf(content):
        reading: Iterator[Page] = await service.read(
            iter_pdf, content, doc_id=name, layout=finds_layout("auto"), max_pixels=service.source.pdf_pixels,
            isolate=service.limits,
        )  # fmt: skip
        pages: list[Page] = []
        while (page := await service.read(next, reading, None)) is not None:
            service.check_pages(page.metadata["total_pages"])
            pages.append(page)
        return _record(content, name, "pdf", pages)
    return _record(
        content, name, "image", [await service.read(service.source.page, PageClues(image=content, doc_id=name))]
    )


def _record(content: bytes, name: str, kind: Literal["pdf", "image"], pages: list[Page]) -> FileRecord:
    return FileRecord(
        id=content_id(content),
        name=name,
        kind=kind,
        bytes=len(content),
        reader=backend_of(choose_backend("auto")).READER,
        pages=tuple(PageRecord.of(page, {}) for page in pages),
    )


def _plain_name(given: str | None) -> str:
    """A file's name without folders and control characters."""
    name = plain_text(re.split(r"[/\\]", given or "")[-1].strip())
    return name[:_LONGEST_NAME] or "file"


def _summary(record: FileRecord) -> dict[str, object]:
    return {
        "id": record.id, "name": record.name, "kind": record.kind, "bytes": record.bytes,
        "page_count": len(record.pages),
    }  # fmt: skip


def _described(record: FileRecord) -> FileAnswer:
    pages = [
        PageAnswer(page=number, label=page.label, width=page.size[0], height=page.size[1])
        for number, page in enumerate(record.pages, start=1)
    ]
    return FileAnswer(**_summary(record), pages=pages)
