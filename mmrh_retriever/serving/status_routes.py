"""How the server is: ``/healthz``, ``/readyz``, ``/v1/models`` and ``/metrics``."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import Field

from mmrh_retriever.serving.answers import Answer
from mmrh_retriever.serving.errors import refusals
from mmrh_retriever.serving.service import ServiceOf

probes = APIRouter(tags=["status"])
"""What is answered without a key."""
router = APIRouter(tags=["status"])


class StatusAnswer(Answer):
    """Whether the server lives, or is ready."""

    status: str


class ModelAnswer(Answer):
    """A model, as OpenAI's clients read it."""

    id: str
    object: str = "model"
    owned_by: str = "mmrh-retriever"
    reads_ahead: bool = Field(
        description="Ours: whether pages are run one by one and kept, so that a long file may be read in portions, by "
        "asking them anything. False as long as the model is not loaded."
    )


class ModelsAnswer(Answer):
    """The models: one."""

    object: str = "list"
    data: list[ModelAnswer]


@probes.get("/healthz")
async def healthz() -> StatusAnswer:
    """The process answers."""
    return StatusAnswer(status="ok")


@probes.get("/readyz", responses=refusals(503))
async def readyz(service: ServiceOf) -> StatusAnswer:
    """The model is loaded, and has been checked against plain attention."""
    _ = service.reranker
    return StatusAnswer(status="ready")


@router.get("/v1/models", responses=refusals())
async def models(service: ServiceOf) -> ModelsAnswer:
    """The model that ranks."""
    return ModelsAnswer(data=[ModelAnswer(id=service.model_label, reads_ahead=service.reads_ahead)])


@router.get("/metrics", responses=refusals(), response_class=PlainTextResponse)
async def metrics(service: ServiceOf) -> Response:
    """Counts of requests, passes and pages, in Prometheus' text form."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
