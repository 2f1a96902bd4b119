"""The member's metrics as Prometheus reads them: one endpoint per pod, made from the book when it is asked for.

Labels are namespace, job and the member's index, and values of closed sets. Each answer is made in a thread of its own,
from what is at hand: whoever reads slowly holds up nobody.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, get_args

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import STEP_BOUNDS, Phase, Progress
from llmtrain_trainer.agent.environment import Environment
from llmtrain_trainer.agent.membership import Membership
from llmtrain_trainer.agent.metrics import Book

PHASES: Final[tuple[Phase, ...]] = get_args(Phase)
_EVERYWHERE: Final = ("::", "0.0.0.0")  # the first takes both kinds of addresses
_LABELS: Final = ("namespace", "job", "member")


@dataclass(frozen=True, slots=True)
class Number:
    """A gauge that is a field of what the first worker said: of its progress, or of a part of that."""

    name: str
    help: str
    field: str
    part: str = ""

    def of(self, said: Progress) -> float | None:
        """None where it says nothing of it."""
        source = getattr(said, self.part) if self.part else said
        value: float | None = getattr(source, self.field) if source else None
        return value


NUMBERS: Final = (
    Number("step", "Optimizer steps done.", "step"),
    Number("loss", "Mean training loss over all workers, nats per token.", "loss"),
    Number("gradient_norm", "Norm of the gradient before clipping.", "gradient_norm"),
    Number("learning_rate", "Learning rate of the newest step.", "learning_rate"),
    Number("tokens_per_second", "Tokens trained per second over all workers.", "tokens_per_second"),
    Number("mfu_ratio", "Share of the hardware's peak arithmetic that the model uses.", "mfu"),
    Number("snapshot_stall_seconds", "How long training stands still for a snapshot.", "stall_seconds", "flash"),
    Number("snapshot_step", "Newest step that every worker has a snapshot of.", "step", "flash"),
    Number("committed_step", "Newest step that members can restore from memory after a loss.", "committed", "flash"),
    Number("checkpoint_step", "Step of the newest durable checkpoint.", "step", "checkpoints"),
)


class MemberCollector(Collector):
    """All series of one member."""

    def __init__(self, environment: Environment, membership: Membership, book: Book) -> None:
        namespace, _, job = environment.job.rpartition("/")
        self._labels = [namespace, job, str(environment.index)]
        self._membership, self._book = membership, book

    def describe(self) -> list[Metric]:
        """Nothing: the registry need not check our names against others'."""
        return []

    def collect(self) -> Iterator[Metric]:
        """What is known now."""
        trained, workers = self._book.trained(), self._book.workers()
        for number in NUMBERS:
            yield self._gauge(number.name, number.help, number.of(trained) if trained else None)
        yield self._gauge("round", "Number of the round that its workers are in, or were in last.", self._round)
        yield self._restarts()
        yield from self._totals()
        yield self._phase(workers)
        yield self._restore(workers)

    @property
    def _round(self) -> float | None:
        return self._membership.report.round or None

    def _gauge(self, name: str, help_text: str, value: float | None) -> Metric:
        family = GaugeMetricFamily(f"llmtrain_member_{name}", help_text, labels=_LABELS)
        if value is not None:
            family.add_metric(self._labels, value)
        return family

    def _restarts(self) -> Metric:
        family = CounterMetricFamily(
            "llmtrain_member_worker_restarts", "Times that its workers were started anew.", labels=_LABELS
        )
        family.add_metric(self._labels, max(0, self._membership.entered - 1))
        return family

    def _totals(self) -> Iterator[Metric]:
        totals = self._book.totals()
        steps = HistogramMetricFamily("llmtrain_member_step_duration_seconds", "Time of each step.", labels=_LABELS)
        below, buckets = 0, []
        for bound, count in zip((*map(str, STEP_BOUNDS), "+Inf"), totals.steps, strict=True):
            below += count
            buckets.append((bound, below))
        steps.add_metric(self._labels, buckets, totals.step_seconds)
        yield steps
        waits = CounterMetricFamily(
            "llmtrain_member_data_wait_seconds", "Time that training waited for its next batch.", labels=_LABELS
        )
        waits.add_metric(self._labels, totals.data_seconds)
        yield waits

    def _phase(self, workers: list[Progress]) -> Metric:
        family = GaugeMetricFamily(
            "llmtrain_member_phase", "1 for what its first worker is doing.", labels=[*_LABELS, "phase"]
        )
        for phase in PHASES if workers else ():
            family.add_metric([*self._labels, phase], float(workers[0].phase == phase))
        return family

    def _restore(self, workers: list[Progress]) -> Metric:
        family = GaugeMetricFamily(
            "llmtrain_member_restore_seconds",
            "How long this round's restore took, by the farthest place that a worker of its read from.",
            labels=[*_LABELS, "tier"],
        )
        told = [each.checkpoints for each in workers if each.checkpoints]
        restores = [(each.restored_tier, each.restore_seconds) for each in told if each.restore_seconds is not None]
        known = [(names.TIERS.index(tier), seconds) for tier, seconds in restores if tier in names.TIERS]
        if known:
            place, seconds = max(known)
            family.add_metric([*self._labels, names.TIERS[place]], seconds)
        return family


def serve(environment: Environment, membership: Membership, book: Book) -> None:
    """Answer from now on, in threads, until the process ends. Raises `OSError` if the port cannot be had."""
    registry = CollectorRegistry()
    registry.register(MemberCollector(environment, membership, book))
    addresses = (environment.host,) if _is_this_machine(environment.host) else _EVERYWHERE
    for address in addresses:
        try:
            start_http_server(environment.metrics_port, address, registry)
        except OSError:
            if address == addresses[-1]:
                raise
        else:
            return


def _is_this_machine(host: str) -> bool:
    """Whether members are processes of one machine, which have no business with the network."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
