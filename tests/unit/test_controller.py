"""The control loop's edge: what is written when, and what a refusal leads to."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from llmtrain_operator.capacity import Inventory
from llmtrain_operator.contract.wire import AgentUpdate, Checkpoints, Progress, Publish, Report
from llmtrain_operator.controller import PREDECESSOR_PAUSE, REFUSAL_PAUSE, Controller
from llmtrain_operator.manifests import Settings
from llmtrain_operator.metrics import Metrics
from llmtrain_operator.policy import Policy
from llmtrain_operator.ports import Rejected, Unavailable
from llmtrain_operator.scheduling import Api
from llmtrain_operator.state import NodeView, PodView

KEY = "d/j"
SPEC = {"nodes": {"min": 1, "max": 1, "desired": 1}, "entrypoint": {"script": "train.py"}}


class OneJob:
    """A cluster that holds one job and counts what is asked of it. `trouble` is raised by writes of that kind."""

    def __init__(self, **spec: Any) -> None:
        self.raw: dict[str, Any] = {
            "metadata": {"name": "j", "namespace": "d", "uid": "job-uid", "generation": 1, "resourceVersion": "1"},
            "spec": SPEC | spec,
        }
        self.statuses: list[Mapping[str, Any]] = []
        self.applied: list[str] = []
        self.created: list[str] = []
        self.left: tuple[PodView, ...] = ()
        self.deleted: list[str] = []
        self.there: tuple[PodView, ...] = ()
        self.trouble: dict[str, Exception] = {}
        self.nodes: dict[str, NodeView] = {}
        self.events: list[str] = []

    def jobs(self) -> list[str]:
        return [KEY]

    def job(self, key: str) -> Mapping[str, Any] | None:
        return copy.deepcopy(self.raw) if key == KEY and self.raw else None

    def pods(self, key: str) -> tuple[PodView, ...]:
        return self.there if key == KEY else ()

    def node(self, name: str) -> NodeView | None:
        return self.nodes.get(name)

    def inventory(self) -> Inventory | None:
        return None

    def serves(self, api: Api) -> bool:
        raise AssertionError(f"no job here asks for {api}")

    async def apply(self, obj: Mapping[str, Any]) -> None:
        self._fail("apply")
        self.applied.append(obj["kind"])

    async def create(self, obj: Mapping[str, Any]) -> None:
        self._fail("create")
        self.created.append(obj["metadata"]["name"])

    async def delete(self, kind: str, namespace: str, name: str, uid: str | None = None, grace: Any = None) -> None:
        assert (kind, namespace, grace) == ("Pod", "d", None)
        self._fail("delete")
        self.deleted.append(f"{name} {uid}")

    async def orphans(self, key: str) -> tuple[PodView, ...]:
        return self.left if key == KEY else ()

    async def patch_status(self, job: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        assert job["metadata"]["resourceVersion"] == "1"
        self._fail("status")
        self.statuses.append(status)
        self.raw["status"] = dict(status)

    async def patch_desired(self, job: Mapping[str, Any], desired: int) -> None:
        raise AssertionError(f"desired is filled already in {job}: {desired}")

    def post_event(self, job: Mapping[str, Any], reason: str, message: str, *, warning: bool = False) -> None:
        assert job["metadata"]["name"] == "j"
        self.events.append(f"{'Warning' if warning else 'Normal'} {reason}: {message}")

    def publish(self, publish: Publish) -> None:
        pass

    def _fail(self, kind: str) -> None:
        if kind in self.trouble:
            raise self.trouble[kind]


def pod(uid: str) -> PodView:
    """A member that works."""
    return PodView(
        "j-0-1", "d", uid, "j", 0, 1, "Running", True, "n", False, "10.0.0.1", "", "", None, "", True, "", "job-uid"
    )


def controller_of(cluster: OneJob, woken: list[tuple[str, float]] | None = None) -> Controller:
    def wake(key: str, delay: float) -> None:
        if woken is not None:
            woken.append((key, delay))

    return Controller(cluster, cluster, Settings("t", "o", "wss://c", "pem"), Metrics(), wake)


async def test_a_job_that_does_nothing_costs_nothing() -> None:
    """Passing time alone is no reason to write: a thousand suspended jobs must not be a thousand writes a second."""
    cluster = OneJob(suspend=True)
    controller = controller_of(cluster)
    pauses = [await controller.reconcile(KEY) for _ in range(3)]
    assert (len(cluster.statuses), pauses[1:]) == (1, [None, None])
    assert cluster.statuses[0]["state"] == "Suspended"


async def test_a_pass_that_changed_something_is_followed_by_another() -> None:
    """Until one changes nothing: what follows from the new status is not left to chance."""
    controller = controller_of(OneJob(suspend=True))
    assert [await controller.reconcile(KEY) for _ in range(2)] == [0.0, None]


@pytest.mark.parametrize(("jobs", "interval"), [(1, 1.0), (250, 10.0)], ids=["alone", "among-many"])
async def test_progress_waits_for_its_turn_and_news_does_not(jobs: int, interval: float) -> None:
    """Figures are shown once a second, less often where many jobs train; a change of state is looked at now."""
    cluster, woken = OneJob(suspend=True), []
    cluster.jobs = lambda: [KEY] * jobs
    controller = controller_of(cluster, woken)
    await controller.reconcile(KEY)
    saved = Checkpoints(step=2)
    for progress, state in (
        (Progress(0, 1, step=1), "running"),
        (Progress(0, 1, step=2), "running"),
        (Progress(0, 1, step=2, checkpoints=saved), "running"),
        (Progress(0, 1, step=3, checkpoints=saved), "failed"),
    ):
        report = Report(KEY, "j-0-1", "u0", 0, 1, "10.0.0.1", state, 1, 4000, progress)
        controller.agent_changed(AgentUpdate("d", "u0", True, "connected", report))
    assert [delay for _, delay in woken] == [0.0, pytest.approx(interval, abs=0.2), 0.0, 0.0]


async def test_a_refused_pod_shows_in_the_status_at_once() -> None:
    """The API server's words stand in the condition after the next pass, and what pods depend on is applied anew."""
    cluster = OneJob()
    controller = controller_of(cluster)
    cluster.trouble["create"] = Rejected('serviceaccount "j" not found')
    pause = await controller.reconcile(KEY)
    assert pause == pytest.approx(0.05)
    await controller.reconcile(KEY)
    running = next(c for c in cluster.raw["status"]["conditions"] if c["type"] == "Running")
    assert 'serviceaccount "j" not found' in running["message"]
    assert cluster.applied.count("ServiceAccount") == 2


async def test_without_an_api_server_silence_is_not_held_against_agents() -> None:
    """What could not be written is not written later on the strength of an old silence."""
    cluster = OneJob()
    controller = controller_of(cluster)
    report = Report("d/j", "j-0-1", "u0", 0, 1, "10.0.0.1", "joining", 0, 4000)
    controller.link_changed(True)
    controller.agent_changed(AgentUpdate("d", "u0", False, "gone", report))
    cluster.there = (pod("u0"),)
    controller.agents._known["u0"].since -= 60
    controller.agents._hearing_since -= 60
    cluster.trouble["status"] = Unavailable("no route to host")
    with pytest.raises(Unavailable):
        await controller.reconcile(KEY)
    assert controller.agents.views(cluster.there)["u0"].silent_for < 1


async def test_a_job_over_what_its_namespace_is_granted_is_invalid() -> None:
    """And nothing of it is created; what it leaves open is filled in."""
    cluster = OneJob(nodes={"min": 3, "max": 3, "desired": 3})
    granted = Policy.model_validate({"contact": "us", "namespaces": {"d": {"maxNodes": 2}}})
    settings = Settings("t", "o", "wss://c", "pem", policy=granted)
    await Controller(cluster, cluster, settings, Metrics(), [].append).reconcile(KEY)
    valid = next(c for c in cluster.statuses[-1]["conditions"] if c["type"] == "Valid")
    assert (valid["status"], cluster.created) == ("False", [])
    assert (
        "limit maxNodes of namespace d: at most 2 nodes per job (is 3). Take fewer, or ask us for more"
        in valid["message"]
    )


async def test_no_pod_is_made_before_the_jobs_own_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is taken is told, no pod borrows what is another's, and it goes on when the name is free."""
    cluster = OneJob()
    controller = controller_of(cluster)
    cluster.trouble["apply"] = Rejected("Service j exists and is not the job's: rename the job or delete it")
    assert await controller.reconcile(KEY) == PREDECESSOR_PAUSE
    assert await controller.reconcile(KEY) == 0.0
    scheduled = next(c for c in cluster.statuses[-1]["conditions"] if c["type"] == "Scheduled")
    assert (scheduled["status"], scheduled["reason"], cluster.created) == ("False", "ObjectsRefused", [])
    assert "Service j exists" in scheduled["message"]
    assert await controller.reconcile(KEY) == REFUSAL_PAUSE, "tried again then, not at once"
    del cluster.trouble["apply"]
    monkeypatch.setattr("llmtrain_operator.controller.REFUSAL_PAUSE", 0.0)
    await controller.reconcile(KEY)
    await controller.reconcile(KEY)
    assert len(cluster.created) == 1


async def test_a_notice_of_the_node_is_seen_and_remembered_with_the_node() -> None:
    """By the taints that the installation names; also when no pod of the job is there any more."""
    cluster = OneJob()
    cluster.there = (pod("u0"),)
    going = NodeView(
        "n", "uid", ready=True, schedulable=True, boot_id="b", taints=("a/b:NoSchedule", "example.com/go:NoSchedule")
    )
    cluster.nodes["n"] = going
    settings = Settings("t", "o", "wss://c", "pem", departure_taints=("example.com/go",))
    controller = Controller(cluster, cluster, settings, Metrics(), [].append)
    await controller.reconcile(KEY)
    expected = [{"name": "n", "taint": "example.com/go:NoSchedule", "pods": ["u0"]}]
    assert cluster.raw["status"]["leavingNodes"] == expected
    assert [said for said in cluster.events if said.startswith("Normal NodeLeaving: node n is leaving (example.com/go")]
    cluster.there = ()
    await controller.reconcile(KEY)
    assert cluster.raw["status"]["leavingNodes"] == expected
    cluster.nodes["n"] = dataclasses.replace(going, taints=())
    await controller.reconcile(KEY)
    assert not cluster.raw["status"].get("leavingNodes")


async def test_the_budget_follows_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """The objects beside the pods are applied again when it has another number, and not otherwise."""
    cluster = OneJob(nodes={"min": 1, "max": 2, "desired": 2})
    number = iter([0, 0, 1, 1, 1])
    monkeypatch.setattr("llmtrain_operator.controller.staying", lambda *_: next(number))
    controller = controller_of(cluster)
    await controller.reconcile(KEY)
    await controller.reconcile(KEY)
    assert cluster.applied.count("PodDisruptionBudget") == 2


async def test_pods_that_a_job_left_are_deleted() -> None:
    """Of one that is gone, and of an earlier one of the name beside the new one's own work."""
    cluster = OneJob(suspend=True)
    cluster.left = (pod("u7"), pod("u8"))
    controller = controller_of(cluster)
    await controller.reconcile(KEY)
    assert (cluster.deleted, len(cluster.statuses)) == (["j-0-1 u7", "j-0-1 u8"], 1)
    cluster.raw = {}
    assert await controller.reconcile(KEY) is None
    assert cluster.deleted == ["j-0-1 u7", "j-0-1 u8"] * 2


async def test_a_leftover_that_cannot_be_deleted_holds_up_nothing() -> None:
    """The job's own work is done by then; the pass is made again later."""
    cluster = OneJob()
    cluster.left = (pod("u7"),)
    cluster.trouble["delete"] = Rejected("a webhook says no")
    with pytest.raises(Rejected):
        await controller_of(cluster).reconcile(KEY)
    assert cluster.created == ["j-0-1"]


async def test_a_job_that_cannot_be_read_any_more_keeps_nothing_from_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it asked for when it was last read is not held against them."""
    cluster = OneJob()
    monkeypatch.setattr(cluster, "inventory", Inventory)
    controller = controller_of(cluster)
    forgotten: list[str] = []
    monkeypatch.setattr(controller._commons, "forget", lambda key: forgotten.append(key) or ())
    await controller.reconcile(KEY)
    assert not forgotten
    cluster.raw["spec"]["nodes"] = {"min": "many"}
    cluster.raw["metadata"]["generation"] = 2
    await controller.reconcile(KEY)
    assert forgotten == [KEY]
