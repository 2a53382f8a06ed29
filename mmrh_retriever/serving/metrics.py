"""Metrics in Prometheus' form, in a registry of their own for each app."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """What one server counts. Labels are routes' templates and statuses, never anything of a request's content."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "mmrh_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram("mmrh_request_seconds", "Seconds of a request.", ["route"], registry=self.registry)
        self._passes = Counter("mmrh_passes", "Passes of the model over pages.", registry=self.registry)
        self._joined = Counter("mmrh_joined_requests", "Requests that these passes answered.", registry=self.registry)
        self._questions = Counter("mmrh_questions", "Questions that these passes asked.", registry=self.registry)

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def count_pass(self, requests: int, questions: int) -> None:
        """Count a pass, the requests that it answers, and their questions."""
        self._passes.inc()
        self._joined.inc(requests)
        self._questions.inc(questions)

    def watch(self, name: str, about: str, value: Callable[[], float]) -> None:
        """Show a number as it is when metrics are read."""
        Gauge(f"mmrh_{name}", about, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """All of it, in Prometheus' text form."""
        return generate_latest(self.registry)
