# SPDX-License-Identifier: Apache-2.0
"""What ``GET /metrics`` tells, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from seqrec_fast import __version__
from seqrec_fast.serving.answers import Counters

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

#: seconds: from a step of a live user to a request that waited long
_SECONDS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_USERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_COUNTED = {
    "requests": "requests taken into the queue",
    "users": "histories of the requests taken",
    "overloaded": "requests turned away because the queue was full",
    "expired": "requests dropped because their deadline had passed",
    "cancelled": "requests dropped because nobody waited for them any more",
    "batches": "batches handed to the engine",
    "calls": "calls of the engine",
}


#: of the statistics of live users what goes up and down; the others only grow
_HELD = ("users", "bytes", "pages")


class _Live(Collector):
    """Numbers that are kept elsewhere and read when somebody asks."""

    def __init__(self, read: Callable[[], Mapping[str, Any]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        now = self._read()
        counters: Counters | None = now.get("counters")
        if counters is not None:
            for name, text in _COUNTED.items():
                yield CounterMetricFamily(
                    f"seqrec_queue_{name}", text, value=getattr(counters, name)
                )
            queued, running = counters.queued, counters.running
            yield GaugeMetricFamily("seqrec_queue_waiting_users", "histories that wait", queued)
            yield GaugeMetricFamily("seqrec_queue_running_batches", "batches at work", running)
        yield GaugeMetricFamily("seqrec_ready", "1 while requests are welcome", now["ready"])
        yield GaugeMetricFamily("seqrec_reloads", "bundles loaded since the start", now["reloads"])
        facts = GaugeMetricFamily("seqrec_info", "what is served, always 1", labels=_INFO)
        facts.add_metric([str(now["info"].get(name, "")) for name in _INFO], 1)
        yield facts
        for name, value in now.get("sessions", {}).items():
            kind = GaugeMetricFamily if name in _HELD else CounterMetricFamily
            yield kind(f"seqrec_sessions_{name}", f"live users: {name}", value=value)


_INFO = ("library", "model", "version", "items")


class Metrics:
    """Counters and histograms of one app."""

    def __init__(self, read: Callable[[], Mapping[str, Any]]) -> None:
        """Begins at zero.

        Args:
            read: gives ``counters``, ``ready``, ``reloads``, ``info`` and ``sessions`` of now.
        """
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "seqrec_http_requests", "answers", ("endpoint", "status"), registry=self._registry
        )
        self._total = Histogram(
            "seqrec_http_seconds",
            "from the head of a request to the end of its answer",
            ("endpoint",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._outside = self._histogram(
            "seqrec_http_outside_engine_seconds",
            "of an answered request, without the queue and the engine",
            _SECONDS,
        )
        self._waited = self._histogram("seqrec_queue_seconds", "waited in the queue", _SECONDS)
        self._engine = self._histogram("seqrec_engine_seconds", "a batch in the engine", _SECONDS)
        self._users = self._histogram("seqrec_batch_users", "histories of a batch", _USERS)
        self._registry.register(
            _Live(lambda: {**read(), "info": {"library": __version__, **read()["info"]}})
        )
        # A labelled child is looked up once, not with each request.
        self._answers: dict[tuple[str, int], Counter] = {}
        self._totals: dict[str, Histogram] = {}

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self._registry)

    def batch(self, users: int, seconds: float) -> None:
        """A batch is done."""
        self._users.observe(users)
        self._engine.observe(seconds)

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """A request has its answer, whatever it is."""
        key = endpoint, status
        counter = self._answers.get(key)
        if counter is None:
            counter = self._answers[key] = self._requests.labels(endpoint, str(status))
            self._totals[endpoint] = self._total.labels(endpoint)
        counter.inc()
        self._totals[endpoint].observe(seconds)

    def spent(self, waited: float, outside: float) -> None:
        """How the time of an answered request divides."""
        self._waited.observe(waited)
        self._outside.observe(outside)

    def text(self) -> bytes:
        """The page."""
        return generate_latest(self._registry)
