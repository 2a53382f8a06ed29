"""Refusals, in the form that the clients of each endpoint read.

``/v2/rerank`` is Cohere's. ``/v1/rerank`` and ``/rerank`` are shared by Cohere's first version (``message``), Jina
(``detail``) and vLLM (``error``): their answer has all three. TEI's body (``texts``) gets TEI's form.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import Request
from starlette.routing import compile_path

from mmrh_retriever.errors import ContextOverflowError, MMRHError, PageError, QuestionError, SettingsError
from mmrh_retriever.runs.plain_text import plain_text

logger = logging.getLogger(__name__)

CLIENT_CLOSED = 499
"""The status that the log shows for a client that went away."""
_ASKED_WRONG = (PageError, QuestionError, ContextOverflowError, SettingsError)
_TYPES = {
    400: "bad_request", 401: "authentication", 403: "forbidden", 404: "not_found", 405: "method_not_allowed",
    413: "too_large", 415: "unsupported_media_type", 422: "validation", 429: "overloaded", 503: "unavailable",
    504: "timeout",
}  # fmt: skip
_REFUSALS = {
    400: "The body can't be read.",
    401: "No key, or none that is known.",
    403: "Without API keys: the caller is not a program on this machine.",
    404: "There is no such file, or no such page.",
    413: "The body is longer than the server takes, or asks for more.",
    422: "The body, or a document in it, is not one that can be ranked.",
    429: "Too many requests wait, or the key's requests of this minute are used up. See Retry-After.",
    500: "The server failed.",
    503: "The model is not loaded yet.",
    504: "The request took longer than the server allows.",
}
_ANYWHERE = (401, 403, 429, 500, 504)
_TEI_TYPES = {429: "Overloaded", 500: "Backend", 503: "Unhealthy", 504: "Overloaded"}
_SHOWN_PROBLEMS = 3


class RequestError(MMRHError, HTTPException):
    """A request that is refused with a status. ``retry_after`` is in seconds."""

    def __init__(self, status: int, message: str, *, retry_after: float | None = None) -> None:
        headers = {} if retry_after is None else {"Retry-After": str(max(1, round(retry_after)))}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        HTTPException.__init__(self, status, message, headers)


class Problem(BaseModel):
    """What was wrong: a sentence, its kind, and the status."""

    model_config = ConfigDict(extra="forbid")
    message: str
    type: str
    code: int


class ErrorAnswer(BaseModel):
    """A refusal, as OpenAI's clients read it."""

    model_config = ConfigDict(extra="forbid")
    error: Problem


class CohereError(BaseModel):
    """A refusal, as Cohere's clients read it."""

    model_config = ConfigDict(extra="forbid")
    message: str


class RerankError(BaseModel):
    """A refusal on a path that clients of Cohere (``message``), Jina (``detail``) and vLLM (``error``) share."""

    model_config = ConfigDict(extra="forbid")
    message: str
    detail: str
    error: Problem


class TeiError(BaseModel):
    """A refusal, as clients of Text Embeddings Inference read it."""

    model_config = ConfigDict(extra="forbid")
    error: str
    error_type: str


def error_content(path: str, status: int, message: str, *, tei: bool = False) -> dict[str, Any]:
    """A refusal in the form of an endpoint, as plain data; ``tei`` if its body was TEI's."""
    message = plain_text(message)
    problem = Problem(message=message, type=_TYPES.get(status, "server_error"), code=status)
    if path == "/v2/rerank":
        return CohereError(message=message).model_dump()
    if path not in ("/v1/rerank", "/rerank"):
        return ErrorAnswer(error=problem).model_dump()
    if tei:
        return TeiError(error=message, error_type=_TEI_TYPES.get(status, "Validation")).model_dump()
    return RerankError(message=message, detail=message, error=problem).model_dump()


def error_response(
    request: Request, status: int, message: str, headers: Mapping[str, str] | None = None, *, body: object = None
) -> JSONResponse:
    """A refusal as a response; ``body`` is the request's, as far as it is known."""
    tei = is_tei(body) or getattr(request.state, "tei", False)
    content = error_content(request.url.path, status, message, tei=tei)
    return JSONResponse(content, status, dict(headers or {}))


def refusals(*statuses: int, form: Any = ErrorAnswer) -> dict[int | str, dict[str, Any]]:
    """The refusals that an endpoint's description lists, in one form: those that any request may meet, and these."""
    listed = sorted({*_ANYWHERE, *statuses})
    return {status: {"model": form, "description": _REFUSALS[status]} for status in listed}


def is_tei(body: object) -> bool:
    """Whether a body is one of Text Embeddings Inference."""
    return isinstance(body, Mapping) and "texts" in body


def add_error_handlers(app: FastAPI) -> None:
    """Let an app answer every error in the form of its endpoint."""

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(request, 422, _described(error), body=error.body)

    @app.exception_handler(RequestError)
    @app.exception_handler(StarletteHTTPException)
    async def _refused(request: Request, error: StarletteHTTPException) -> JSONResponse:
        allowed = _allowed(request) if error.status_code == 405 else ""
        headers = {"Allow": allowed} if allowed else error.headers
        return error_response(request, error.status_code, str(error.detail), headers)

    @app.exception_handler(MMRHError)
    async def _ours(request: Request, error: MMRHError) -> JSONResponse:
        if isinstance(error, _ASKED_WRONG):
            return error_response(request, 422, request.app.state.service.without_paths(str(error)))
        return failure_response(request, error)


def failure_response(request: Request, error: Exception) -> JSONResponse:
    """The answer to a request that failed by no fault of its own. The log says where, and nothing of its content."""
    where = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s in\n%s", type(error).__name__, where)
    return error_response(request, 500, f"The server failed ({type(error).__name__}). Its log says where.")


def _allowed(request: Request) -> str:
    """The methods that the description gives a path; Starlette names those of its first route alone."""
    described = request.app.openapi()["paths"]
    found = [methods for path, methods in described.items() if compile_path(path)[0].match(request.url.path)]
    return ", ".join(sorted(method.upper() for methods in found for method in methods))


def _described(error: RequestValidationError) -> str:
    """The first problems of a body, each with where it is; nothing of its values but what pydantic names."""
    problems = error.errors()
    shown = [
        f"{'.'.join(str(part)[:80] for part in problem['loc'] if part != 'body') or 'body'}: {problem['msg'][:300]}"
        for problem in problems[:_SHOWN_PROBLEMS]
    ]
    more = f" (and {len(problems) - _SHOWN_PROBLEMS} more)" if len(problems) > _SHOWN_PROBLEMS else ""
    return "; ".join(shown) + more
