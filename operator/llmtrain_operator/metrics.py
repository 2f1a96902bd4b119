"""What Prometheus gets to see: the operator's own health, and each job's numbers as its status has them.

Job series are made from the newest status at scrape time, so a forgotten job leaves no series behind. Labels come
from closed sets plus namespace, job name and the rank of a straggler; never a pod, a UID or a step.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from llmtrain_operator.api.status import JobStatus, State
from llmtrain_operator.goodput import goodput

_STATES: Final = get_args(State)
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_JOB: Final = ("namespace", "job")


@dataclass(frozen=True, slots=True)
class _Series:
    """One metric of every job. `value` gives None where a job has nothing to show yet."""

    family: type[GaugeMetricFamily | CounterMetricFamily]
    name: str
    help: str
    value: Callable[[JobStatus], float | None]


def _progress(field: str) -> Callable[[JobStatus], float | None]:
    return lambda status: getattr(status.progress, field) if status.progress else None


_SERIES: Final = (
    _Series(GaugeMetricFamily, "step", "Optimizer steps done.", _progress("step")),
    _Series(GaugeMetricFamily, "max_steps", "Optimizer steps to do.", _progress("max_steps")),
    _Series(GaugeMetricFamily, "loss", "Mean training loss, nats per token.", _progress("loss")),
    _Series(
        GaugeMetricFamily,
        "tokens_per_second",
        "Tokens trained per second over all workers.",
        _progress("tokens_per_second"),
    ),
    _Series(
        GaugeMetricFamily,
        "members",
        "Members of the current round.",
        lambda s: len(s.round.members) if s.round else 0,
    ),
    _Series(GaugeMetricFamily, "members_wanted", "Members that the job should have.", lambda s: s.target_nodes),
    _Series(GaugeMetricFamily, "spares", "Spares that are ready to take a member's place.", lambda s: s.spares),
    _Series(
        GaugeMetricFamily,
        "goodput_ratio",
        "Productive share of the time since the start, suspension not counted.",
        lambda s: goodput(s.ledger),
    ),
    _Series(
        GaugeMetricFamily,
        "committed_step",
        "Newest step that members can restore from memory after a loss.",
        lambda s: s.flash.committed_step if s.flash else None,
    ),
    _Series(
        GaugeMetricFamily,
        "snapshot_stall_seconds",
        "How long training stands still for a snapshot.",
        lambda s: s.flash.stall_seconds if s.flash else None,
    ),
    _Series(GaugeMetricFamily, "avoided_nodes", "Nodes that new pods are kept off.", lambda s: len(s.avoided_nodes)),
    _Series(CounterMetricFamily, "restarts", "Rounds that were lost.", lambda s: s.restarts),
)


class _JobCollector(Collector):
    """Turns the newest statuses into series when asked."""

    def __init__(self) -> None:
        self.statuses: dict[tuple[str, str], JobStatus] = {}

    def describe(self) -> list[Metric]:
        return []  # the registry need not check our names against others'

    def collect(self) -> Iterator[Metric]:
        states = Tally(status.state for status in self.statuses.values())
        jobs = GaugeMetricFamily("llmtrain_jobs", "Jobs by state.", labels=["state"])
        for state in _STATES:
            jobs.add_metric([state], states[state])
        yield jobs
        for series in _SERIES:
            yield self._family(series)
        yield self._stragglers()
        yield self._time()

    def _family(self, series: _Series) -> Metric:
        family = series.family(f"llmtrain_job_{series.name}", series.help, labels=_JOB)
        for labels, status in self.statuses.items():
            value = series.value(status)
            if value is not None:
                family.add_metric(labels, value)
        return family

    def _stragglers(self) -> Metric:
        family = GaugeMetricFamily(
            "llmtrain_job_straggler_ratio",
            "Time of a persistently slow rank's own part of a step over that of its peers.",
            labels=[*_JOB, "rank"],
        )
        for labels, status in self.statuses.items():
            for straggler in status.stragglers:
                if straggler.found:
                    family.add_metric([*labels, str(straggler.rank)], straggler.factor)
        return family

    def _time(self) -> Metric:
        family = CounterMetricFamily(
            "llmtrain_job_time_seconds", "Seconds since the start, by what they went to.", labels=[*_JOB, "cause"]
        )
        for labels, status in self.statuses.items():
            for cause, seconds in status.ledger.items():
                family.add_metric([*labels, cause], seconds)
        return family


class Metrics:
    """All metrics of one operator process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._jobs = _JobCollector()
        self.registry.register(self._jobs)
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

    def job(self, namespace: str, job: str, status: JobStatus) -> None:
        """Show `status` as the job's newest."""
        self._jobs.statuses[namespace, job] = status

    def forget(self, namespace: str, job: str) -> None:
        """Show nothing of a job any more."""
        self._jobs.statuses.pop((namespace, job), None)

    def observe_pass(self, key: str, waited: float, seconds: float, succeeded: bool) -> None:
        """Count a pass; fits `workqueue.PassObserver`."""
        del key
        self._waits.observe(waited)
        self._passes.labels("success" if succeeded else "error").observe(seconds)

    def observe_call(self, verb: str, resource: str, code: str) -> None:
        """Count a request to the API server; fits `cluster.client.CallObserver`."""
        self._calls.labels(verb, resource, code).inc()

    def begin_term(self, depth: Callable[[], float]) -> None:
        """This replica leads; `depth` tells the queue's depth at every scrape."""
        self._leader.set(1)
        self._depth.set_function(depth)

    def end_term(self) -> None:
        """It does not any more: the jobs' numbers are another replica's to show."""
        self._leader.set(0)
        self._depth.set_function(lambda: 0.0)
        self._jobs.statuses.clear()

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)
