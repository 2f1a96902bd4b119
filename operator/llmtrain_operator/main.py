"""The process `llmtrain-operator`: it puts the rooms together and runs them until told to stop.

Any number of replicas may run: one leads, the others stand by with warm caches. Whatever part ends by itself ends the
process: the kubelet starts it anew, and all state is in the jobs' status.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from llmtrain_operator import departure, handlers, http, policy
from llmtrain_operator.cluster.client import connect
from llmtrain_operator.cluster.cluster import Cluster
from llmtrain_operator.cluster.lease import Lease
from llmtrain_operator.leader import Leader
from llmtrain_operator.manifests import Settings
from llmtrain_operator.metrics import Metrics
from llmtrain_operator.network import Rule
from llmtrain_operator.policy import Policy

log = logging.getLogger(__name__)


class PartEnded(Exception):  # noqa: N818 - it says what happened
    """A part that runs for ever has returned."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    settings: Settings
    namespaces: tuple[str, ...]
    lease: tuple[str, str]
    control_socket: Path
    http_port: int
    kubeconfig: Path | None


async def run(options: Options) -> None:
    """Reconcile until SIGTERM or SIGINT. Raises what ended a part that must not end."""
    stop = asyncio.Event()

    def obey_signals() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)

    obey_signals()
    metrics = Metrics()
    async with (
        connect(options.kubeconfig, on_call=metrics.observe_call, on_throttle=metrics.observe_throttle) as own,
        connect(
            options.kubeconfig,
            on_call=metrics.observe_call,
            may_write=lambda: lease.held(),
            on_throttle=metrics.observe_throttle,
        ) as client,
    ):
        lease = Lease(own, *options.lease, f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}")
        cluster = Cluster(client, lambda key: leader.wake(key), options.namespaces)
        leader = Leader(cluster, lease, options.settings, options.control_socket, metrics)
        ready = asyncio.Event()

        async def stand() -> None:
            # Before the caches are complete a missing pod may just not have been listed yet.
            await cluster.synced()
            ready.set()
            log.info("caches are complete: %d jobs", len(cluster.jobs()))
            await lease.run(leader.lead)

        async with http.serve(options.http_port, metrics, lambda: "" if ready.is_set() else "caches are filling"):
            await _first_end(
                stop,
                cluster.run(),
                stand(),
                handlers.run(leader.wake, options.namespaces, obey_signals),
            )
        log.info("stopping")


async def _first_end(stop: asyncio.Event, *parts: Coroutine[Any, Any, None]) -> None:
    """Run everything until `stop` is set; raise if a part ends before that."""
    stopping = asyncio.create_task(stop.wait())
    tasks = [asyncio.create_task(part, name=str(part)) for part in parts]
    done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
    asked = stop.is_set()
    for task in (stopping, *tasks):
        task.cancel()
    await asyncio.gather(stopping, *tasks, return_exceptions=True)
    if not asked:
        ended = next(task for task in tasks if task in done)
        raise PartEnded(f"{ended.get_name()} ended") from ended.exception()


def _rules(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[Rule, ...] | None:
    try:
        rules = None if value is None else json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}") from error
    if rules is not None and not (isinstance(rules, list) and all(isinstance(rule, dict) for rule in rules)):
        raise click.BadParameter("give a JSON list of objects as in a NetworkPolicy")
    return None if rules is None else tuple(rules)


def _policy(_context: click.Context, _option: click.Parameter, value: str) -> Policy:
    try:
        return policy.read(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _listed(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


@click.command()
@click.option("--namespaces", default="", help="Comma-separated namespaces to watch; all if empty.")
@click.option("--lease", required=True, help="NAMESPACE/NAME of the Lease that decides which replica leads.")
@click.option("--control-socket", type=click.Path(path_type=Path), default=Path("/run/llmtrain/coordinator.sock"))
@click.option("--coordinator-url", required=True, help="Where agents reach the coordinator: wss://host:port[,...].")
@click.option("--coordinator-ca", type=click.Path(path_type=Path, exists=True), required=True, help="PEM file.")
@click.option("--trainer-image", required=True, help="Image of members that name none.")
@click.option("--operator-image", required=True, help="Image that the agent is copied from into users' own images.")
@click.option("--image-pull-policy", default="IfNotPresent")
@click.option("--image-pull-secret", multiple=True, help="Name of a secret in the job's namespace; repeatable.")
@click.option("--member-egress", callback=_rules, help="JSON list of egress rules; without it no NetworkPolicies.")
@click.option("--metrics-from", callback=_rules, help="JSON list of peers that may read members' metrics.")
@click.option("--policy", "granted", callback=_policy, default="{}", help="JSON of what namespaces are granted.")
@click.option(
    "--departure-taints",
    default=",".join(departure.TAINTS),
    help="Comma-separated keys of the taints that say that a node is about to go; none if empty.",
)
@click.option("--http-port", type=int, default=8080, help="/healthz, /readyz and /metrics.")
@click.option("--kubeconfig", type=click.Path(path_type=Path, exists=True), help="Default: the pod's own account.")
@click.option("--log-level", default="INFO")
def main(
    namespaces: str,
    lease: str,
    control_socket: Path,
    coordinator_url: str,
    coordinator_ca: Path,
    trainer_image: str,
    operator_image: str,
    image_pull_policy: str,
    image_pull_secret: tuple[str, ...],
    member_egress: tuple[Rule, ...] | None,
    metrics_from: tuple[Rule, ...] | None,
    granted: Policy,
    departure_taints: str,
    http_port: int,
    kubeconfig: Path | None,
    log_level: str,
) -> None:
    """Reconcile LLMTrainJobs until stopped."""
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    settings = Settings(
        trainer_image=trainer_image,
        operator_image=operator_image,
        coordinator_urls=coordinator_url,
        coordinator_ca=coordinator_ca.read_text(),
        image_pull_policy=image_pull_policy,
        image_pull_secrets=image_pull_secret,
        member_egress=member_egress,
        policy=granted,
        departure_taints=_listed(departure_taints),
        metrics_from=metrics_from or (),
    )
    if kubeconfig:
        os.environ["KUBECONFIG"] = str(kubeconfig)  # where kopf looks for it
    place, _, name = lease.partition("/")
    if not place or not name:
        raise click.BadParameter(f"{lease!r} is not NAMESPACE/NAME", param_hint="--lease")
    asyncio.run(run(Options(settings, _listed(namespaces), (place, name), control_socket, http_port, kubeconfig)))


if __name__ == "__main__":
    main()
