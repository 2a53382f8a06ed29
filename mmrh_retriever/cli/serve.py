"""``mmrh serve``: the HTTP server."""

from __future__ import annotations

import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmrh_retriever.cli.options import ModelOptions, WindowOptions, grouped, say, say_bundled, settings_from

if TYPE_CHECKING:
    from mmrh_retriever.serving.settings import ServerSettings


class _Given:
    """Options that are settings by the same names."""

    def given(self) -> dict[str, Any]:
        """Those that were given."""
        return {name: value for name, value in asdict(self).items() if value is not None}  # type: ignore[call-overload]


@dataclass(frozen=True)
class AddressOptions(_Given):
    """Where the server listens, and who may ask."""

    host: Annotated[
        str | None, typer.Option(show_default="127.0.0.1", help="The address to listen at; others need keys.")
    ] = None
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, show_default="8000", help="The port; 0 takes a free one.")
    ] = None
    api_key_file: Annotated[Path | None, typer.Option(help="A file with one API key a line.")] = None
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, show_default="600", help="Requests that each key may make in a minute.")
    ] = None


@dataclass(frozen=True)
class LimitOptions(_Given):
    """What a request may ask for."""

    max_body: Annotated[int | None, typer.Option(min=1, show_default="64 MiB", help="Bytes of a body.")] = None
    max_documents: Annotated[int | None, typer.Option(min=1, show_default="1000", help="Documents.")] = None
    max_pages: Annotated[int | None, typer.Option(min=1, show_default="500", help="Pages of files.")] = None
    max_question: Annotated[int | None, typer.Option(min=1, show_default="4000", help="Characters of a question.")] = (
        None
    )
    max_questions: Annotated[int | None, typer.Option(min=1, show_default="64", help="Questions.")] = None
    max_queue: Annotated[
        int | None, typer.Option(min=1, show_default="64", help="Requests that wait or run at a time; more get 429.")
    ] = None
    timeout: Annotated[float | None, typer.Option(min=0.01, show_default="120", help="Seconds for a request.")] = None
    pdf_seconds: Annotated[
        float | None, typer.Option(min=0.01, show_default="10", help="Seconds for opening, reading or drawing a PDF.")
    ] = None
    join_ms: Annotated[
        float | None, typer.Option(min=0, show_default="4", help="Milliseconds that questions wait for one another.")
    ] = None
    join_questions: Annotated[
        int | None, typer.Option(min=1, show_default="32", help="Questions that run in one pass.")
    ] = None


@dataclass(frozen=True)
class KeepingOptions(_Given):
    """What is kept, and how documents are read."""

    files: Annotated[
        str | None, typer.Option(help="Folder, or address such as s3://bucket/folder, of uploaded files.")
    ] = None
    files_disk: Annotated[int | None, typer.Option(min=1, show_default="4 GiB", help="Bytes of files kept.")] = None
    trace_content: Annotated[
        bool, typer.Option("--trace-content", help="Put questions and texts into spans (OpenTelemetry), too.")
    ] = False


@dataclass(frozen=True)
class DocumentOptions(_Given):
    """How pages are kept, and how far documents are trusted."""

    page_memory: Annotated[
        int | None, typer.Option(min=0, show_default="1 GiB", help="Bytes of encoded pages kept in memory.")
    ] = None
    store: Annotated[Path | None, typer.Option(help="Keep encoded pages in this folder, too.")] = None
    store_disk: Annotated[int | None, typer.Option(min=0, show_default="32 GiB", help="Bytes of that folder.")] = None
    max_image_pixels: Annotated[
        int | None, typer.Option(min=1, show_default="64 million", help="Pixels of an image.")
    ] = None
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch images of documents from public web addresses.")
    ] = False


@dataclass(frozen=True)
class ClusterOptions(_Given):
    """The server on many machines."""

    ray: Annotated[bool, typer.Option("--ray", help="Run replicas with Ray Serve (extra serve-ray).")] = False
    ray_address: Annotated[
        str | None, typer.Option(help="A running cluster, or auto; one is started on this machine if left out.")
    ] = None
    replicas: Annotated[int | None, typer.Option(min=1, show_default="1", help="Replicas of the model.")] = None
    max_replicas: Annotated[int | None, typer.Option(min=1, help="Add replicas up to so many under load.")] = None
    target_requests: Annotated[
        float | None, typer.Option(min=0.1, show_default="8", help="Requests of a replica beyond which it adds others.")
    ] = None
    replica_cpus: Annotated[float | None, typer.Option(min=0, show_default="1", help="Cores of a replica.")] = None
    replica_gpus: Annotated[float | None, typer.Option(min=0, show_default="0", help="GPUs of a replica.")] = None


@grouped
def serve_command(
    model: ModelOptions,
    window: WindowOptions,
    address: AddressOptions,
    limits: LimitOptions,
    keeping: KeepingOptions,
    documents: DocumentOptions,
    cluster: ClusterOptions,
) -> None:
    """Serve reranking over HTTP: documents in Cohere's and Jina's shape, and files that are asked many questions."""
    try:
        import uvicorn

        from mmrh_retriever.serving.access_log import log_to_stderr
        from mmrh_retriever.serving.app import create_app
    except ImportError as error:
        raise ImportError(
            f"{error}. The server needs FastAPI, uvicorn and others: pip install 'mmrh-retriever[serve]'."
        ) from error
    from mmrh_retriever.adapters.settings import DocumentSettings
    from mmrh_retriever.model.loading import model_path
    from mmrh_retriever.serving.settings import ServerSettings

    ranking = dict(settings_from(model, window))
    chosen = DocumentSettings(**ranking, heads=model.heads, **documents.given())
    settings = ServerSettings(documents=chosen, **address.given(), **limits.given(), **keeping.given())
    if model_path(model.model)[1]:
        say_bundled()
    if cluster.ray:
        _serve_on_ray(settings, cluster)
        return
    server: uvicorn.Server
    app = create_app(settings, on_failure=lambda: setattr(server, "should_exit", True))
    config = uvicorn.Config(
        app, host=settings.host, port=settings.port, access_log=False, log_config=None, ws="none", server_header=False,
        http="h11",  # which has a limit for headers
    )  # fmt: skip
    server = uvicorn.Server(config)
    listening = config.bind_socket()
    log_to_stderr()
    _say_address(settings, listening.getsockname()[1])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # which uvicorn raises again when it has finished
    server.run(sockets=[listening])
    if app.state.service.failure is not None:
        raise app.state.service.failure


def _serve_on_ray(settings: ServerSettings, cluster: ClusterOptions) -> None:
    from mmrh_retriever.serving.ray_deployment import ClusterSettings, deployed, wait_for_end

    given = cluster.given()
    del given["ray"]
    if "ray_address" in given:
        given["address"] = given.pop("ray_address")
    with deployed(settings, ClusterSettings(**given)):
        _say_address(settings, settings.port)
        wait_for_end()


def _say_address(settings: ServerSettings, port: int) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    who = "programs on this machine, without a key" if settings.api_key_file is None else "whoever has a key"
    say(f"Serving at http://{host}:{port} for {who}. /readyz says when the model is there.")
