"""The control loop's edge: key -> observe -> plan -> write status -> publish -> act -> tell.

One pass per job at a time. The status is written first, under the observed resourceVersion: if that fails nothing of
the plan is carried out, so what the operator did is always what the status says. A pass that changed anything is
followed by another, until one changes nothing. Mere progress is written at most once a second per job and
`PROGRESS_RATE` times a second over all, the mere passing of time once a minute; neither leads to another pass.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from llmtrain_operator import capacity, commons, departure, manifests, policy, scheduling
from llmtrain_operator.agents import AgentBook
from llmtrain_operator.api import JobSpec, JobStatus
from llmtrain_operator.api.validation import Problem, parse
from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import AgentUpdate, Publish
from llmtrain_operator.metrics import Metrics
from llmtrain_operator.plan import plan
from llmtrain_operator.plan.budget import staying
from llmtrain_operator.ports import ClusterPort, Conflict, Rejected, Unavailable
from llmtrain_operator.state import (
    Action,
    ApplyChildren,
    CreatePod,
    DeleteJob,
    DeletePod,
    FillDesired,
    JobView,
    Observed,
    Obstacle,
    Plan,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

PROGRESS_INTERVAL = 1.0
"""Seconds between two status writes of one job that say nothing but how far it is; longer when there are many jobs."""
PROGRESS_RATE = 25.0
"""Such writes per second over all jobs: each is an fsync for etcd and an event for everyone who watches."""
LEDGER_INTERVAL = 60.0
"""The same for two that say nothing but that time has passed: it can be booked later just as well."""
AT_ONCE = 16
"""Pods of one job that are created or deleted at the same time."""
CONFLICT_PAUSE = 0.05
"""Seconds after which a pass that was overtaken by someone's write is made again."""
PREDECESSOR_PAUSE = 0.5
"""Seconds between two looks at whether the objects of an earlier job of the name are gone."""
REFUSAL_PAUSE = 30.0
"""Seconds before a pod that the API server refused (quota, admission) is tried again."""
CHILDREN_TRUST = 300.0
"""Seconds after which Service, budget and account are applied again in case someone changed them."""
_LEDGER_FIELDS = frozenset({"ledger", "accelerator_ledger", "ledger_time", "goodput", "timeline", "tally"})
_PROGRESS_FIELDS = _LEDGER_FIELDS | {"progress", "history", "checkpoint", "flash", "stragglers", "step_times"}


class Publisher(Protocol):
    """The coordinator's side of the controller."""

    def publish(self, publish: Publish) -> None:
        """Make these the directives of the job's agents."""


@dataclass(frozen=True, slots=True)
class _Pass:
    """What a pass goes by when it acts: the job, its new status, and what was observed."""

    job: JobView
    spec: JobSpec | None
    status: JobStatus
    observed: Observed


class Controller:
    """Reconciles jobs of `cluster`. `wake` puts a job's key on the queue, for a pass in so many seconds."""

    def __init__(
        self,
        cluster: ClusterPort,
        publisher: Publisher,
        settings: manifests.Settings,
        metrics: Metrics,
        wake: Callable[[str, float], None],
    ) -> None:
        self._cluster = cluster
        self._publisher = publisher
        self._settings = settings
        self._metrics = metrics
        self._wake = wake
        self.agents = AgentBook(time.monotonic)
        self._applied: dict[str, tuple[str, float]] = {}
        self._refused: dict[str, dict[int, tuple[float, str]]] = {}
        self._unmade: dict[str, tuple[float, Obstacle]] = {}
        self._written: dict[str, float] = {}
        self._parsed: dict[str, tuple[tuple[str, int], JobSpec | None, tuple[Problem, ...]]] = {}
        self._needs: dict[str, tuple[JobSpec, capacity.Needs]] = {}
        self._commons = commons.Commons()

    # Signals from the coordinator: remembered, then the job is looked at.

    def agent_changed(self, update: AgentUpdate) -> None:
        """An agent said something, came or went."""
        progressed = self.agents.update(update)
        if update.report:
            job = update.report.job
            self._wake(job, self._progress_due(job) if progressed else 0.0)

    def link_changed(self, connected: bool) -> None:
        """The coordinator came or went: every job's view of its agents may have changed."""
        self.agents.link_changed(connected)
        for key in self._cluster.jobs():
            self._wake(key, 0.0)

    async def reconcile(self, key: str) -> float | None:
        """One pass over the job `namespace/name`. Seconds until it wants another look, None if it does not."""
        raw = self._cluster.job(key)
        if raw is None:
            self._forget(key)
            await self._clear_away(key)
            return None
        job = JobView.of(raw)
        spec, problems = self._parse(job, raw)
        status = JobStatus.model_validate(raw.get("status") or {})
        observed = self._among_others(raw, job, spec, status, self._observe(job, spec, status))
        decided = plan(job, spec, problems, status, observed, time.time())
        try:
            wait = await self._write(raw, key, status, decided)
        except Conflict:
            # Someone wrote in between; the reflector brings it, and the next pass decides anew.
            return CONFLICT_PAUSE
        except Unavailable:
            self.agents.excuse(observed.agents)
            raise
        # On record, so it may be said at once: recovery does not wait for pods to be created.
        self._publisher.publish(Publish(key, dict(decided.directives)))
        seen = _Pass(job, spec, decided.status, observed)
        for batch in _batches(decided.actions):
            if not all(await _together(self._act(raw, seen, action) for action in batch)):
                wait = CONFLICT_PAUSE
                if isinstance(batch[0], ApplyChildren):
                    wait = PREDECESSOR_PAUSE
                    break  # no pod without its account, its policy and its gang
        for event in decided.events:
            self._cluster.post_event(raw, event.reason, event.message, warning=event.type == "Warning")
        self._metrics.job(job.namespace, job.name, decided.status)
        await self._clear_away(key)
        pause = REFUSAL_PAUSE if self._refused.get(key) or key in self._unmade else None
        look_again = decided.look_again, self.agents.look_again(observed.pods)
        return min((t for t in (wait, *look_again, pause) if t is not None), default=None)

    def _forget(self, key: str) -> None:
        namespace, name = key.split("/", 1)
        self._publisher.publish(Publish(key, {}))
        self._metrics.forget(namespace, name)
        self.agents.forget_all_but((), namespace, key)
        for memory in (self._applied, self._written, self._parsed, self._refused, self._unmade, self._needs):
            memory.pop(key, None)
        self._wake_all(self._commons.forget(key))

    async def _clear_away(self, key: str) -> None:
        """Delete what an earlier job of the name left. The garbage collector does it too, but has been seen to leave
        the devices taken for most of a minute."""
        orphans = await self._cluster.orphans(key)
        for start in range(0, len(orphans), AT_ONCE):
            batch = orphans[start : start + AT_ONCE]
            await _together(self._cluster.delete("Pod", pod.namespace, pod.name, pod.uid) for pod in batch)

    def _parse(self, job: JobView, raw: Mapping[str, Any]) -> tuple[JobSpec | None, tuple[Problem, ...]]:
        version = (job.uid, job.generation)
        known = self._parsed.get(job.key)
        if known is None or known[0] != version:
            granted = self._settings.policy
            spec, found = parse(job.name, policy.with_defaults(granted.grant(job.namespace), raw.get("spec") or {}))
            excess = policy.problems(granted, job.namespace, spec) if spec else ()
            known = self._parsed[job.key] = (version, spec, (*found, *excess))
        return known[1], known[2]

    def _observe(self, job: JobView, spec: JobSpec | None, status: JobStatus) -> Observed:
        # A job that was deleted and created again under its name must not adopt its predecessor's pods.
        pods = tuple(pod for pod in self._cluster.pods(job.key) if pod.owner == job.uid)
        self.agents.forget_all_but((pod.uid for pod in pods), job.namespace, job.key)
        now = time.monotonic()
        obstacle = scheduling.obstacle(spec, self._cluster.serves) if spec else None
        refused = {i: text for i, (when, text) in self._refused.get(job.key, {}).items() if now - when < REFUSAL_PAUSE}
        under = {pod.node for pod in pods if pod.node} | {node.name for node in status.leaving_nodes}
        nodes = [node for name in under if (node := self._cluster.node(name))]
        domains = {node.name: node.domains for node in nodes}
        taints = self._settings.departure_taints
        leaving = {node.name: why for node in nodes if (why := departure.notice(node.taints, taints))}
        can_avoid = self._settings.can_avoid
        memory = {node.name: node.accelerator_memory for node in nodes if node.accelerator_memory}
        agents = self.agents.views(pods)
        seen = Observed(pods, agents, False, refused, domains, obstacle, can_avoid, leaving, memory)
        return self._with_children(job, spec, status, seen) if spec else seen

    def _among_others(
        self, raw: Mapping[str, Any], job: JobView, spec: JobSpec | None, status: JobStatus, seen: Observed
    ) -> Observed:
        """What was `seen`, and the job's part of what nodes have room for; the others hear of where it stands."""
        inventory = self._cluster.inventory()
        if spec is None or inventory is None:
            self._wake_all(self._commons.forget(job.key))  # one that cannot be read asks for nothing
            return seen
        needs = self._needs_of(job, spec)
        created = raw["metadata"].get("creationTimestamp", "")
        stands = commons.standing(job.key, created, spec, status, seen.pods, needs)
        self._wake_all(self._commons.update(job.key, stands))
        if not spec.autoscale.enabled:
            return seen
        part = self._commons.part(job.key, inventory)
        return replace(seen, room=part.room, claimed=part.claimed, claimants=part.claimants)

    def _needs_of(self, job: JobView, spec: JobSpec) -> capacity.Needs:
        known = self._needs.get(job.key)
        if known is None or known[0] is not spec:
            made = manifests.member_pod(job, spec, 0, 0, self._settings)
            known = self._needs[job.key] = spec, capacity.needs(made)
        return known[1]

    def _wake_all(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._wake(key, 0.0)

    def _with_children(self, job: JobView, spec: JobSpec, status: JobStatus, seen: Observed) -> Observed:
        """What was `seen`, and whether the objects beside the pods are as they should be."""
        now = time.monotonic()
        digest, since = self._applied.get(job.key, ("", 0.0))
        applied = digest == _digest(self._children(job, spec, status, seen)) and now - since < CHILDREN_TRUST
        obstacle = seen.obstacle
        if unmade := self._unmade.get(job.key):
            obstacle = obstacle or unmade[1]
            applied = now - unmade[0] < REFUSAL_PAUSE  # until then they are not tried again
        return replace(seen, children_applied=applied, obstacle=obstacle)

    def _children(self, job: JobView, spec: JobSpec, status: JobStatus, seen: Observed) -> list[dict[str, Any]]:
        # A group object of an API that is not there cannot be applied, and no pod is created that could need it.
        size = 0 if scheduling.obstacle(spec, self._cluster.serves) else scheduling.group_size(spec, seen.pods)
        return manifests.children(job, spec, self._settings, size, staying(job, spec, status, seen, time.time()))

    async def _write(self, raw: Mapping[str, Any], key: str, old: JobStatus, decided: Plan) -> float | None:
        """Write the new status if it is urgent or due; else the seconds until it is."""
        new = decided.status
        if new == old:
            return None
        settled = not (_differ(old, new, _PROGRESS_FIELDS) or decided.actions or decided.events)
        if settled:
            if not _differ(old, new, _LEDGER_FIELDS):
                if time.monotonic() - self._written.get(key, float("-inf")) < LEDGER_INTERVAL:
                    return None
            elif (due := self._progress_due(key)) > 0:
                return due
        await self._cluster.patch_status(raw, new.model_dump(mode="json", by_alias=True, exclude_none=True))
        self._written[key] = time.monotonic()
        return None if settled else 0.0

    def _progress_due(self, key: str) -> float:
        """Seconds until the job's progress may be written again."""
        interval = max(PROGRESS_INTERVAL, len(self._cluster.jobs()) / PROGRESS_RATE)
        return max(0.0, self._written.get(key, float("-inf")) + interval - time.monotonic())

    async def _act(self, raw: Mapping[str, Any], seen: _Pass, action: Action) -> bool:
        """Carry out one action; False if it came to nothing in a way that the next pass has to see."""
        job = seen.job
        try:
            await self._perform(seen, action)
        except Conflict as error:
            log.info("%s: %s: %s", job.key, action, error)
            return False
        except Rejected as error:
            # Quota, admission, a malformed template: the user has to hear of it; other actions still go ahead.
            if isinstance(action, ApplyChildren):
                self._unmade[job.key] = (time.monotonic(), Obstacle("ObjectsRefused", str(error)))
            if isinstance(action, CreatePod):
                self._refused.setdefault(job.key, {})[action.index] = (time.monotonic(), str(error))
                # What it lacks may be the account, when the garbage of an earlier job of that name was collected late.
                self._applied.pop(job.key, None)
            self._cluster.post_event(raw, f"{type(action).__name__}Rejected", str(error), warning=True)
            log.warning("%s: %s: %s", job.key, action, error)
            return not isinstance(action, CreatePod | ApplyChildren)  # the next pass says so in the status
        return True

    async def _perform(self, seen: _Pass, action: Action) -> None:
        job, spec = seen.job, seen.spec
        match action:
            case ApplyChildren():
                assert spec is not None
                objects = self._children(job, spec, seen.status, seen.observed)
                await _together(self._cluster.apply(child) for child in objects)
                self._applied[job.key] = (_digest(objects), time.monotonic())
                self._unmade.pop(job.key, None)
            case FillDesired(value):
                # As it is after this pass's own status write, not as it was observed.
                if (newest := self._cluster.job(job.key)) is not None:
                    await self._cluster.patch_desired(newest, value)
            case CreatePod(index, incarnation, avoid):
                assert spec is not None
                others = self._cluster.pods(job.key)
                size, settings = scheduling.group_size(spec, others), manifests.like(self._settings, spec, others)
                pod = manifests.member_pod(job, spec, index, incarnation, settings, size, avoid)
                await self._cluster.create(pod)
                self._refused.get(job.key, {}).pop(index, None)
            case DeletePod(name, uid, reason, grace):
                log.info("%s: deleting pod %s: %s", job.key, name, reason)
                await self._cluster.delete("Pod", job.namespace, name, uid, grace)
            case DeleteJob():
                await self._cluster.delete(names.KIND, job.namespace, job.name, job.uid)


def _batches(actions: Sequence[Action]) -> Iterator[Sequence[Action]]:
    """What may be done at the same time: pods among themselves, in bounded numbers; all else in order, first."""
    pods = [action for action in actions if isinstance(action, CreatePod | DeletePod)]
    yield from ([action] for action in actions if not isinstance(action, CreatePod | DeletePod))
    yield from (pods[start : start + AT_ONCE] for start in range(0, len(pods), AT_ONCE))


async def _together(parts: Iterable[Awaitable[T]]) -> list[T]:
    """Await all of them, also if one fails: nothing of a pass goes on after its end. Then raise the first failure."""
    done = await asyncio.gather(*parts, return_exceptions=True)
    for result in done:
        if isinstance(result, BaseException):
            raise result
    return [result for result in done if not isinstance(result, BaseException)]


def _differ(old: JobStatus, new: JobStatus, ignored: Set[str]) -> bool:
    return old.model_dump(exclude=set(ignored)) != new.model_dump(exclude=set(ignored))


def _digest(objects: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(objects, sort_keys=True).encode()).hexdigest()
