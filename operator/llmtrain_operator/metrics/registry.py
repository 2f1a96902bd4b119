"""All metrics of one operator process, in a registry of their own: how it is itself, and the jobs' newest statuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from llmtrain_operator.api import JobStatus
from llmtrain_operator.metrics import jobs

_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """What is told to it is what the next scrape shows. `clock`: seconds since 1970."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.registry = CollectorRegistry()
        self._statuses: dict[tuple[str, str], JobStatus] = {}
        self._clock = clock
        self._queued: Callable[[], float] = _none
        ProcessCollector(registry=self.registry)
        self._passes = Histogram(
            "llmtrain_reconcile_duration_seconds",
            "Time of one pass over a job.",
            ["result"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._waits = Histogram(
            "llmtrain_queue_wait_seconds",
            "Time that a job was due for a pass before the pass began.",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._leader = Gauge("llmtrain_leader", "1 if this replica leads.", registry=self.registry)
        self._depth = Gauge("llmtrain_queue_depth", "Jobs waiting for a pass or in one.", registry=self.registry)
        self._calls = Counter(
            "llmtrain_kubernetes_requests",
            "Requests to the API server; code 0 is no answer.",
            ["verb", "resource", "code"],
            registry=self.registry,
        )
        self._throttled = Counter(
            "llmtrain_kubernetes_throttled_seconds",
            "Time that requests to the API server were held back by our own rate limit.",
            registry=self.registry,
        )

    def job(self, namespace: str, job: str, status: JobStatus) -> None:
        """Show `status` as the job's newest."""
        self._statuses[namespace, job] = status

    def forget(self, namespace: str, job: str) -> None:
        """Show nothing of a job any more."""
        self._statuses.pop((namespace, job), None)

    def observe_pass(self, key: str, waited: float, seconds: float, succeeded: bool) -> None:
        """Count a pass; fits `workqueue.PassObserver`."""
        del key
        self._waits.observe(waited)
        self._passes.labels("success" if succeeded else "error").observe(seconds)

    def observe_call(self, verb: str, resource: str, code: str) -> None:
        """Count a request to the API server; fits `cluster.client.CallObserver`."""
        self._calls.labels(verb, resource, code).inc()

    def observe_throttle(self, seconds: float) -> None:
        """Count how long a request was held back; fits `cluster.client.ThrottleObserver`."""
        self._throttled.inc(seconds)

    def begin_term(self, depth: Callable[[], float]) -> None:
        """This replica leads; `depth` tells the queue's depth at every scrape."""
        self._leader.set(1)
        self._queued = depth

    def end_term(self) -> None:
        """It does not any more: the jobs' numbers are another replica's to show."""
        self._leader.set(0)
        self._queued = _none
        self._statuses.clear()

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        self._depth.set(self._queued())
        return self._text(list(self._statuses.items()))

    async def scrape(self) -> bytes:
        """The same, made beside the event loop: of a thousand jobs it takes longer than a pass should wait."""
        self._depth.set(self._queued())
        return await asyncio.to_thread(self._text, list(self._statuses.items()))

    def _text(self, seen: jobs.Jobs) -> bytes:
        return generate_latest(self.registry) + "".join(jobs.text(seen, self._clock())).encode()


def _none() -> float:
    return 0.0
