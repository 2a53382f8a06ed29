"""The rerank endpoints: ``/v1/rerank``, ``/v2/rerank`` and ``/rerank``."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Body, Request
from pydantic import Discriminator, Tag

from mmrh_retriever.serving.answers import (
    ApiVersion,
    Meta,
    RerankAnswer,
    RerankResult,
    TeiResult,
    Usage,
    best,
    best_regions,
    text_of,
)
from mmrh_retriever.serving.bodies import Document, RerankBody, TeiBody
from mmrh_retriever.serving.documents import cut_text, read_document, with_layout
from mmrh_retriever.serving.errors import CohereError, RequestError, RerankError, TeiError, is_tei, refusals
from mmrh_retriever.serving.service import Service, ServiceOf
from mmrh_retriever.types import ScoredPage

router = APIRouter(tags=["rerank"])

AnyBody = Annotated[
    Annotated[RerankBody, Tag("rerank")] | Annotated[TeiBody, Tag("tei")],
    Discriminator(lambda body: "tei" if is_tei(body) else "rerank"),
    Body(),
]
_STATUSES = (400, 413, 422, 503)
_LABEL_TOKENS = 64  # room for what stands around a text


@router.post("/v1/rerank", responses=refusals(*_STATUSES, form=RerankError), response_model_exclude_none=True)
async def rerank_v1(body: RerankBody, service: ServiceOf) -> RerankAnswer:
    """Rank documents for a query: the body of Cohere (first version), Jina and vLLM."""
    return await _rerank(body, service, "1")


@router.post("/v2/rerank", responses=refusals(*_STATUSES, form=CohereError), response_model_exclude_none=True)
async def rerank_v2(body: RerankBody, service: ServiceOf) -> RerankAnswer:
    """Rank documents for a query: the body of Cohere (second version)."""
    return await _rerank(body, service, "2")


@router.post("/rerank", responses=refusals(*_STATUSES, form=RerankError | TeiError), response_model_exclude_none=True)
async def rerank(body: AnyBody, request: Request, service: ServiceOf) -> RerankAnswer | list[TeiResult]:
    """Rank documents for a query: the body of vLLM and Jina, or that of Text Embeddings Inference (``texts``)."""
    if isinstance(body, RerankBody):
        return await _rerank(body, service, "2")
    request.state.tei = True
    room = service.reranker.engine().room - _LABEL_TOKENS if body.truncate else None
    ranking = await _ranked(service, body.query, body.texts, tokens=room)
    return [
        TeiResult(
            index=scored.position, score=scored.score, text=body.texts[scored.position] if body.return_text else None
        )
        for scored in ranking
    ]


async def _rerank(body: RerankBody, service: Service, version: str) -> RerankAnswer:
    ranking = await _ranked(
        service,
        body.query,
        body.documents,
        tokens=body.max_tokens_per_doc,
        top_n=body.top_n,
        with_tokens=body.regions > 0,
    )
    results = []
    for scored in best(ranking, body.top_n):
        result = RerankResult(
            index=scored.position,
            relevance_score=scored.score,
            document=text_of(scored.page) if body.return_documents else None,
            probability=scored.probability,
        )
        if body.regions:
            page = await service.read(with_layout, scored.page, service.source)
            result = result.model_copy(update={"regions": best_regions(scored, page, body.regions)})
        results.append(result)
    return RerankAnswer(
        id=uuid.uuid4().hex,
        model=service.model_label,
        results=results,
        usage=Usage(documents=len(ranking), questions=1),
        meta=Meta(api_version=ApiVersion(version=version)),
    )


async def _ranked(
    service: Service,
    question: str,
    documents: Sequence[Document],
    *,
    tokens: int | None = None,
    top_n: int | None = None,
    with_tokens: bool = False,
) -> list[ScoredPage]:
    """The ranking of documents that are read and put into the queue."""
    reranker = service.reranker
    service.check_questions([question])
    if len(documents) > service.settings.max_documents:
        raise RequestError(413, f"There are {len(documents)} documents; {service.settings.max_documents} are taken.")
    numbered = enumerate(documents)
    read = [await service.read(read_document, document, index, service.source) for index, document in numbered]
    tokenizer = reranker.prompter.tokenizer
    pages = [await service.read(cut_text, one.page, tokenizer, tokens) for one in read]
    key = ("documents", tokens, *(one.key for one in read))
    (ranking,) = await service.rank(key, pages, [question], top_n=top_n, with_tokens=with_tokens)
    return ranking
