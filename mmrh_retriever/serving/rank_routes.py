"""Ranking the pages of uploaded files: ``/v1/rank``, and pages as pictures with what a question looks at."""

from __future__ import annotations

import io
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from PIL import Image

from mmrh_retriever.errors import PageError
from mmrh_retriever.explain.heat_maps import heat_map
from mmrh_retriever.pdf.reader import parse_page_range
from mmrh_retriever.ranking.grid_regions import with_some_regions
from mmrh_retriever.ranking.region_scores import DEFAULT_AGGREGATE
from mmrh_retriever.ranking.regions import ranked_regions
from mmrh_retriever.serving.answers import PageRanking, PageResult, RankAnswer, Usage, best, best_regions
from mmrh_retriever.serving.bodies import NOT_BLANK, FileId, RankBody
from mmrh_retriever.serving.errors import RequestError, refusals
from mmrh_retriever.serving.file_store import FileRecord
from mmrh_retriever.serving.service import Service, ServiceOf
from mmrh_retriever.types import MAX_INDEX, Page, ScoredPage

router = APIRouter(tags=["files"])

PIXELS = "image/png"
_REFUSALS = refusals(400, 404, 413, 422, 503)


@router.post("/v1/rank", responses=_REFUSALS, response_model_exclude_none=True)
async def rank(body: RankBody, service: ServiceOf) -> RankAnswer:
    """Rank the pages of files for one question or several.

    Pages are run once and kept; a later question costs its own tokens.
    """
    service.check_questions(body.questions)
    chosen = await _chosen_pages(service, list(dict.fromkeys(body.files)), body.pages)
    pages = [page for _, page in chosen]
    async with _while_there(service, body.files):
        found = await service.rank(_key(chosen), pages, body.questions, top_n=body.top_n, with_tokens=body.regions > 0)
    rankings = [
        PageRanking(
            query=question,
            results=[_result(scored, chosen[scored.position][0], body.regions) for scored in best(ranking, body.top_n)],
        )
        for question, ranking in zip(body.questions, found, strict=True)
    ]
    usage = Usage(documents=len(pages), questions=len(body.questions))
    return RankAnswer(id=uuid.uuid4().hex, model=service.model_label, rankings=rankings, usage=usage)


@router.get(
    "/v1/files/{file_id}/pages/{number}.png",
    responses={**_REFUSALS, 200: {"content": {PIXELS: {"schema": {"type": "string", "format": "binary"}}}}},
    response_class=Response,
)
async def page_picture(
    file_id: Annotated[FileId, Path()],
    number: Annotated[int, Path(ge=1, le=MAX_INDEX, description="The page, counted from 1.")],
    service: ServiceOf,
    query: Annotated[
        str | None, Query(pattern=NOT_BLANK, description="A question; its heat map is drawn over the page.")
    ] = None,
    regions: Annotated[int, Query(ge=0, le=100, description="How many of the best regions to draw.")] = 0,
    max_side: Annotated[int, Query(ge=64, le=4096, description="The longer side in pixels at most.")] = 1600,
) -> Response:
    """A page as a PNG picture; with ``query`` the page in grey under its heat map, asked among its file's pages."""
    record = await service.read(service.files.record, file_id)
    pages = await _pages(service, record)
    if number > len(pages):
        raise RequestError(404, f"The file has {len(pages)} pages, and no page {number}.")
    async with _while_there(service, [file_id]):
        if query is None:
            drawn = await service.read(_png_of_page, pages[number - 1], max_side)
        else:
            service.check_questions([query])
            service.check_pages(len(pages))
            key = _key([(record, page) for page in pages])
            (ranking,) = await service.rank(key, pages, [query], with_tokens=True)
            scored = next(scored for scored in ranking if scored.position == number - 1)
            drawn = await service.read(_png_of_attention, scored, regions, max_side)
    return Response(drawn, media_type=PIXELS, headers={"Cache-Control": "private, max-age=3600"})


@asynccontextmanager
async def _while_there(service: Service, files: list[str]) -> AsyncIterator[None]:
    """Refuse with 404 what fails because a file was deleted meanwhile."""
    try:
        yield
    except PageError:
        for file_id in files:
            await service.read(service.files.record, file_id)
        raise


async def _chosen_pages(service: Service, files: list[str], chosen: str | None) -> list[tuple[FileRecord, Page]]:
    """The pages of files that a request names, each with its file's record."""
    found: list[tuple[FileRecord, Page]] = []
    for file_id in files:
        record = await service.read(service.files.record, file_id)
        pages = await _pages(service, record)
        indices = range(len(pages)) if chosen is None else _indices(chosen, record)
        found += [(record, pages[index]) for index in indices]
        service.check_pages(len(found))
    return found


async def _pages(service: Service, record: FileRecord) -> list[Page]:
    return await service.read(service.files.pages, record, pixels=service.source.pdf_pixels, limits=service.limits)


def _indices(chosen: str, record: FileRecord) -> list[int]:
    try:
        return parse_page_range(chosen, total=len(record.pages))
    except PageError as error:
        raise PageError(f"{record.name}: {error}", source=record.name) from error


def _key(pages: list[tuple[FileRecord, Page]]) -> tuple[object, ...]:
    return ("files", *((record.id, page.index) for record, page in pages))


def _result(scored: ScoredPage, record: FileRecord, regions: int) -> PageResult:
    page = scored.page
    return PageResult(
        rank=scored.rank,
        file=record.id,
        name=record.name,
        page=page.number,
        label=page.label,
        score=scored.score,
        attention_score=scored.attention_score,
        text_score=scored.text_score,
        probability=scored.probability,
        page_size=page.size,
        regions=best_regions(scored, page, regions) if regions else None,
    )


def _png_of_page(page: Page, max_side: int) -> bytes:
    image = page.pixels()
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return _png(image)


def _png_of_attention(scored: ScoredPage, regions: int, max_side: int) -> bytes:
    boxes = []
    if regions and scored.token_scores is not None:
        scored = replace(scored, page=with_some_regions(scored.page))
        boxes = ranked_regions([scored], aggregate=DEFAULT_AGGREGATE, top_n=regions)
    return _png(heat_map(scored, regions=boxes, max_side=max_side))


def _png(image: Image.Image) -> bytes:
    memory = io.BytesIO()
    image.save(memory, format="PNG")
    return memory.getvalue()
