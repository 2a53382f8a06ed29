"""Many machines: replicas of the server on a Ray cluster, behind one door.

Each replica has its own model and its own encoded pages. The door sends all questions about a file to the same replica
(Ray Serve's consistent hashing). What a lost replica was asked is asked again elsewhere, and its files, which are in a
folder or at an address that all replicas reach, are encoded there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmrh_retriever.errors import MMRHError, SettingsError
from mmrh_retriever.serving import status_routes
from mmrh_retriever.serving.access_log import log_to_stderr
from mmrh_retriever.serving.app import ROUTERS, create_app
from mmrh_retriever.serving.errors import RequestError
from mmrh_retriever.serving.forwarding import Forwarded, Returned, answer_of, create_door
from mmrh_retriever.serving.keys import Keys
from mmrh_retriever.serving.metrics import Metrics
from mmrh_retriever.serving.settings import ServerSettings
from mmrh_retriever.settings import TextOrNone, settings_error

logger = logging.getLogger("mmrh_retriever.serving")

APP = "mmrh"
"""The name of the application on the cluster."""
REPLICA_HEADER = "x-mmrh-replica"
"""The header of an answer that names the replica."""
MAX_ATTEMPTS = 3
"""How many replicas a request may lose before it fails."""
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_LOGGING = {"enable_access_log": False}  # its lines hold queries


class DeploymentError(MMRHError, RuntimeError):
    """Replicas that can't be started."""


class ClusterSettings(BaseModel):
    """How many replicas run, where, and on what.

    Raises:
        SettingsError: a setting that is unknown, of the wrong type or out of its range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: TextOrNone = Field(None, description="A running cluster; auto finds it. One is started here if None.")
    replicas: int = Field(1, ge=1, description="Replicas of the model; at least so many with max_replicas.")
    max_replicas: int | None = Field(None, ge=1, description="Add replicas up to so many where requests wait.")
    target_requests: float = Field(8.0, gt=0, description="Requests of a replica beyond which others are added.")
    replica_cpus: float = Field(1.0, ge=0, description="Cores of a replica.")
    replica_gpus: float = Field(0.0, ge=0, description="GPUs of a replica.")

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise settings_error(error) from error
        if self.most < self.replicas:
            raise SettingsError(f"max_replicas={self.max_replicas} is below replicas={self.replicas}. Raise it.")

    @property
    def most(self) -> int:
        """How many replicas there can be."""
        return self.replicas if self.max_replicas is None else self.max_replicas


class Replica:
    """The server's app in a process of its own, perhaps on another machine."""

    async def __init__(self, settings: ServerSettings) -> None:  # type: ignore[misc] # Ray awaits it
        log_to_stderr()
        self._name = str(import_module("ray.serve").get_replica_context().replica_id.unique_id)
        self._app = create_app(settings)
        self._lifespan = self._app.router.lifespan_context(self._app)  # kept, or it would end
        await self._lifespan.__aenter__()
        service = self._app.state.service
        while not service.ready:
            if service.failure is not None:
                raise service.failure
            await asyncio.sleep(0.05)

    async def answer(self, request: Forwarded) -> Returned:
        """What the app answers, with the replica's name."""
        found = await answer_of(self._app, request)
        return Returned(found.status, (*found.headers, (REPLICA_HEADER, self._name)), found.body)


class Door:
    """What the cluster's proxies send requests to: checks them, and hands them on to a replica."""

    def __init__(self, settings: ServerSettings, keys: Keys | None, replicas: Any) -> None:
        log_to_stderr()
        self._settings, self._keys, self._replicas = settings, keys, replicas
        self._lost = 0

    def __serve_build_asgi_app__(self) -> Any:
        metrics = Metrics()
        metrics.watch("asked_again", "Requests asked again, as their replica was lost.", lambda: self._lost)
        routes = [route for router in (status_routes.probes, *ROUTERS) for route in router.routes]
        return create_door(self._settings, self._keys, self._ask, routes, metrics)

    async def _ask(self, request: Forwarded, session: str) -> Returned:
        lost = import_module("ray").exceptions.RayActorError
        for _ in range(MAX_ATTEMPTS):
            response = self._replicas.options(session_id=session).answer.remote(request)
            try:
                found: Returned = await response
            except asyncio.CancelledError:
                response.cancel()
                raise
            except lost as error:
                self._lost += 1
                logger.warning("A replica was lost (%s). What it was asked is asked again.", type(error).__name__)
            else:
                return found
        raise RequestError(503, f"{MAX_ATTEMPTS} replicas were lost over this request. Ask for less.", retry_after=5)


def application(settings: ServerSettings, cluster: ClusterSettings) -> Any:
    """The server as an application of Ray Serve's.

    Raises:
        SettingsError: no ``files`` that all replicas reach.
        DataError: a file of API keys that can't be read.
        ImportError: Ray Serve is missing; it names the extra to install.
    """
    serve = _ray_serve()
    if settings.files is None:
        raise SettingsError("files=None keeps uploads in one process. Give files= a folder that all replicas reach.")
    keys = None if settings.api_key_file is None else Keys.of_file(settings.api_key_file, settings.requests_per_minute)
    behind = settings.model_copy(update={"api_key_file": None, "host": "127.0.0.1"})
    before = settings.model_copy(update={"max_queue": settings.max_queue * cluster.most})
    scaling: dict[str, Any] = {"num_replicas": cluster.replicas}
    if cluster.max_replicas is not None:
        limits = {"min_replicas": cluster.replicas, "max_replicas": cluster.max_replicas}
        scaling = {"autoscaling_config": limits | {"target_ongoing_requests": cluster.target_requests}}
    replica = serve.deployment(
        Replica,
        ray_actor_options={"num_cpus": cluster.replica_cpus, "num_gpus": cluster.replica_gpus},
        max_ongoing_requests=settings.max_queue,
        request_router_config={"request_router_class": ROUTER},
        graceful_shutdown_timeout_s=settings.timeout,
        logging_config=_LOGGING,
        **scaling,
    )
    door = serve.deployment(
        serve.ingress()(Door),
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=2 * before.max_queue + 100,  # the door refuses what is too much, not Ray
        graceful_shutdown_timeout_s=settings.timeout,
        logging_config=_LOGGING,
    )
    return door.bind(before, keys, replica.bind(behind))


@contextmanager
def deployed(settings: ServerSettings, cluster: ClusterSettings) -> Iterator[None]:
    """The application on its cluster, ready; it is taken away again at the end, when what runs is finished.

    Raises:
        SettingsError, DataError, ImportError: as :func:`application`; port 0.
        DeploymentError: replicas that can't be started.
    """
    app, serve, ray = application(settings, cluster), _ray_serve(), import_module("ray")
    if settings.port == 0:
        raise SettingsError("port=0: the proxies of a cluster listen at the same port on every machine. Give one.")
    with _connected(ray, cluster.address):
        serve.start(proxy_location="EveryNode", http_options={"host": settings.host, "port": settings.port})
        try:
            serve.run(app, name=APP, route_prefix="/", logging_config=_LOGGING)
            yield
        except RuntimeError as error:
            raise DeploymentError(f"The replicas can't be started: {error}. Their logs say why.") from error
        finally:
            serve.delete(APP)


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """A connection to a cluster, one that is there already if there is one. A cluster begun here ends here."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address=address, logging_level="warning", **({"include_dashboard": False} if address is None else {}))
    try:
        yield
    finally:
        ray.shutdown()


def wait_for_end() -> None:
    """Return when the process is told to end, by a keyboard or by SIGTERM."""
    ended = threading.Event()
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda *_: ended.set())
    ended.wait()


def _ray_serve() -> Any:
    try:
        return import_module("ray.serve")
    except ImportError as error:
        raise ImportError(
            f"{error}. Many machines need Ray Serve: pip install 'mmrh-retriever[serve,serve-ray]'."
        ) from error
