"""The app: endpoints, limits and the model, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer

import mmrh_retriever
from mmrh_retriever.ranking.reranker import Reranker
from mmrh_retriever.serving import file_routes, rank_routes, rerank_routes, status_routes
from mmrh_retriever.serving.access_log import AccessLog
from mmrh_retriever.serving.errors import add_error_handlers
from mmrh_retriever.serving.gate import Gate
from mmrh_retriever.serving.keys import Keys
from mmrh_retriever.serving.page_files import add_page
from mmrh_retriever.serving.service import Service
from mmrh_retriever.serving.settings import ServerSettings
from mmrh_retriever.serving.traces import Traces

ROUTERS = (status_routes.router, rerank_routes.router, rank_routes.router, file_routes.router)
"""The endpoints, but for those that are asked without a key."""


def create_app(
    settings: ServerSettings | None = None,
    *,
    reranker: Reranker | None = None,
    on_failure: Callable[[], None] | None = None,
) -> FastAPI:
    """The server as an ASGI app.

    Args:
        settings: the defaults if ``None``.
        reranker: one that is loaded already, instead of the one that the settings name.
        on_failure: called if the model can't be loaded; ``app.state.service.failure`` then says why.

    The model is loaded when the app starts, and ``/readyz`` answers 503 until it is there. When the app ends, the pass
    that runs is finished.

    Raises:
        SettingsError, DataError: a file of API keys that can't be read or used.
    """
    settings = settings or ServerSettings()
    file = settings.api_key_file
    keys = None if file is None else Keys.of_file(file, settings.requests_per_minute)
    service = Service(settings, reranker, on_failure)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.open()
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(
        title="mmrh", version=mmrh_retriever.__version__, summary="Rerank page images.", lifespan=lifespan,
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.state.service = service
    add_error_handlers(app)
    app.add_middleware(Traces)
    app.add_middleware(Gate, settings=settings, keys=keys)
    app.add_middleware(AccessLog, count=service.metrics.count_request)
    app.include_router(status_routes.probes)
    guard = [] if keys is None else [Security(HTTPBearer(auto_error=False))]  # for the description: Gate asks for it
    for router in ROUTERS:
        app.include_router(router, dependencies=guard)
    add_page(app)
    return app
