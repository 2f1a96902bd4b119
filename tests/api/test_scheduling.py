"""Queues, gangs and refusals against a real API server: what a job waits for, how it says so, and that it goes on."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from llmtrain_operator import controller
from llmtrain_operator.cluster import discovery
from llmtrain_operator.cluster.client import NotFound
from llmtrain_operator.cluster.cluster import Cluster
from llmtrain_operator.cluster.resources import BY_KIND, JOBS, PODS, Resource
from llmtrain_operator.contract import names
from llmtrain_operator.controller import Controller
from llmtrain_operator.manifests import Settings
from llmtrain_operator.metrics import Metrics
from llmtrain_operator.ports import Conflict, Rejected
from llmtrain_operator.workqueue import WorkQueue
from tests.support.schedulers import COSCHEDULING, CRDS, KUEUE, VOLCANO, GangScheduler, Kueue

SPEC = {"model": {"preset": "gpt-tiny"}, "data": {"source": "/data"}, "training": {"maxSteps": 1}}
QUOTAS = Resource("ResourceQuota", "v1", "resourcequotas")
PRIORITIES = Resource("PriorityClass", "scheduling.k8s.io/v1", "priorityclasses", namespaced=False)
POLICIES = Resource(
    "ValidatingAdmissionPolicy", "admissionregistration.k8s.io/v1", "validatingadmissionpolicies", namespaced=False
)
BINDINGS = Resource(
    "ValidatingAdmissionPolicyBinding", POLICIES.api_version, "validatingadmissionpolicybindings", namespaced=False
)


class Operator:
    """Controller and cluster port in this process, for one namespace; no agents ever come."""

    def __init__(self, client, namespace):
        self.client, self.namespace = client, namespace
        self.port = Cluster(client, self._wake, [namespace])
        settings = Settings("trainer:1", "operator:1", "wss://coordinator:7443", "CA")
        self._controller = Controller(self.port, self, settings, Metrics(), self._wake)
        self._queue = WorkQueue(self._controller.reconcile)
        self._news = asyncio.Event()

    async def run(self):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.port.run())
            await self.port.synced()
            tasks.create_task(self._queue.run())

    def publish(self, publish):
        del publish
        self._news.set()  # a pass has written its status

    def _wake(self, key, delay=0.0):
        self._queue.add(key, delay)
        self._news.set()

    async def apply(self, nodes, **spec):
        body = {
            "apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "a"},
            "spec": SPEC | {"nodes": nodes, **spec},
        }  # fmt: skip
        await self.client.request("create", JOBS, self.namespace, body=body)

    async def until(self, status, reason):
        """Wait for condition Scheduled; its message."""
        try:
            async with asyncio.timeout(30):
                while True:
                    self._news.clear()
                    found = self.scheduled()
                    if (found.get("status"), found.get("reason")) == (status, reason):
                        return found["message"]
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"not {status}/{reason} but {self.port.job(f'{self.namespace}/a')}") from None

    def scheduled(self):
        job = self.port.job(f"{self.namespace}/a") or {}
        conditions = job.get("status", {}).get("conditions") or []
        return next((c for c in conditions if c["type"] == "Scheduled"), {})

    async def pods(self):
        return (await self.client.request("list", PODS, self.namespace))["items"]


@contextlib.asynccontextmanager
async def going(*coroutines):
    tasks = [asyncio.create_task(each) for each in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ended:
        if isinstance(end, Exception):
            raise end


@pytest.fixture
async def operator(client, namespace, monkeypatch):
    monkeypatch.setattr(discovery, "_INTERVAL", 0.3)
    monkeypatch.setattr(controller, "REFUSAL_PAUSE", 1.0)
    operator = Operator(client, namespace)
    async with going(operator.run()):
        yield operator


@contextlib.asynccontextmanager
async def existing(client, resource, *objects):
    for body in objects:
        await client.request("create", resource, body=body)
    yield
    for body in objects:
        await client.request("delete", resource, name=body["metadata"]["name"])


@pytest.mark.parametrize(
    ("gang", "crd", "scheduler"),
    [
        ("coscheduling", COSCHEDULING, "scheduler-plugins-scheduler"),
        ("volcano", VOLCANO, "volcano"),
    ],
)
async def test_a_gang_starts_together_once_its_scheduler_is_there(operator, client, namespace, gang, crd, scheduler):
    """No pods before; none has a node while only some could; all have when there is room for the least that trains."""
    await operator.apply({"min": 3, "max": 4}, scheduling={"gang": gang})
    message = await operator.until("False", "GangSchedulerMissing")
    assert crd["spec"]["group"] in message
    assert await operator.pods() == []
    standing_in = GangScheduler(client, namespace, crd, scheduler)
    standing_in.room = 2
    async with existing(client, CRDS, crd), going(standing_in.run()):
        await operator.until("False", "WaitingForScheduler")
        await asyncio.sleep(0.5)  # rounds of the stand-in, which would have used the room that there is
        assert not any(pod["spec"].get("nodeName") for pod in await operator.pods())
        standing_in.room = 4
        await operator.until("True", "AllPlaced")


async def test_kueue_admits_the_least_that_trains_as_one_and_more_as_there_is_quota(operator, client, namespace):
    """Every pod is created held back; the group goes in whole, the fourth member when there is quota for it too."""
    await operator.apply({"min": 3, "max": 4}, scheduling={"queue": "team-a"})
    await operator.until("False", "QueueMissing")
    assert await operator.pods() == []
    queue = Kueue(client, namespace, "team-a")
    async with existing(client, CRDS, KUEUE), going(queue.run()):
        message = await operator.until("False", "Queued")
        assert "queue team-a" in message

        async def held():
            return {p["metadata"]["name"]: bool(p["spec"].get("schedulingGates")) for p in await operator.pods()}

        async def until_held(*expected):
            async with asyncio.timeout(20):
                while list((await held()).values()) != list(expected):  # noqa: ASYNC110 - only the server knows
                    await asyncio.sleep(0.05)

        await until_held(True, True, True, True)
        queue.quota = 3
        await until_held(False, False, False, True)
        queue.quota = 4
        await until_held(False, False, False, False)
        await operator.until("False", "Unschedulable")  # there are no nodes, says the real scheduler


async def test_what_is_not_the_jobs_is_left_alone(operator, client, namespace):
    """A job of the name of someone's service takes nothing over, says so, and starts when the name is free."""
    services = BY_KIND["Service"]
    theirs = {"metadata": {"name": "a"}, "spec": {"selector": {"app": "theirs"}, "ports": [{"port": 80}]}}
    before = await client.request("create", services, namespace, body=theirs)
    await operator.apply({"min": 1})
    assert "Service a exists and is not the job's" in await operator.until("False", "ObjectsRefused")
    assert await client.request("get", services, namespace, "a") == before
    assert await operator.pods() == []
    await client.request("delete", services, namespace, "a")
    await operator.until("False", "Unschedulable")


async def test_what_an_earlier_job_of_the_name_left_makes_room(operator, client, namespace):
    """Nobody waits for the garbage collector, which may take most of a minute, and nothing is taken over."""
    owner = {"apiVersion": names.API_VERSION, "kind": names.KIND, "name": "a", "controller": True}
    owner["uid"] = "11111111-2222-3333-4444-555555555555"
    left = {"name": "a", "ownerReferences": [owner]}
    ports = {"clusterIP": "None", "ports": [{"port": 1}]}
    for kind, fields in (("Service", {"spec": ports}), ("ServiceAccount", {}), ("PodDisruptionBudget", {})):
        await client.request("create", BY_KIND[kind], namespace, body={"metadata": left, **fields})
    await operator.apply({"min": 1})
    await operator.until("False", "Unschedulable")
    job = await client.request("get", JOBS, namespace, "a")
    for kind in ("Service", "ServiceAccount", "PodDisruptionBudget"):
        found = await client.request("get", BY_KIND[kind], namespace, "a")
        assert [each["uid"] for each in found["metadata"]["ownerReferences"]] == [job["metadata"]["uid"]]


async def test_an_operator_that_is_behind_deletes_nothing_of_a_newer_job(operator, client, namespace):
    """To it the newer job's objects look like those of an earlier one."""
    await operator.apply({"min": 1})
    await operator.until("False", "Unschedulable")
    mine = await client.request("get", BY_KIND["Service"], namespace, "a")
    again = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": namespace}}
    owner = mine["metadata"]["ownerReferences"][0] | {"uid": "11111111-2222-3333-4444-555555555555"}
    again["metadata"]["ownerReferences"] = [owner]
    with pytest.raises(Conflict, match="Service a is an earlier job's and not gone yet"):
        await operator.port.apply(again)
    assert await client.request("get", BY_KIND["Service"], namespace, "a") == mine


async def enforced(client, namespace, pods):
    """Until admission obeys the quota: its controller writes what holds, and is slow while kinds come and go."""
    async with asyncio.timeout(90):
        while True:
            status = (await client.request("get", QUOTAS, namespace, "team")).get("status", {})
            if status.get("used") and status["hard"]["pods"] == pods:
                return
            await asyncio.sleep(0.05)


async def test_a_quota_is_told_in_the_servers_words_and_lifted_without_a_nudge(operator, client, namespace):
    body = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team"}, "spec": {"hard": {"pods": "1"}}}
    await client.request("create", QUOTAS, namespace, body=body)
    await enforced(client, namespace, "1")
    await operator.apply({"min": 2})
    message = await operator.until("False", "PodsRefused")
    assert "exceeded quota: team, requested: pods=1, used: pods=1, limited: pods=1" in message
    await client.request("patch", QUOTAS, namespace, "team", body={"spec": {"hard": {"pods": "5"}}})
    await enforced(client, namespace, "5")
    await operator.until("False", "Unschedulable")
    assert len(await operator.pods()) == 2


async def accepted(client, namespace) -> bool:
    probe = {"metadata": {"name": "probe", "labels": {}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    try:
        await client.request("create", PODS, namespace, body=probe, query={"dryRun": "All"})
    except Rejected:
        return False
    return True


async def test_an_admission_policy_is_told_in_its_own_words(operator, client, namespace):
    name = f"team-label-{namespace}"
    policy = {
        "apiVersion": POLICIES.api_version,
        "kind": POLICIES.kind,
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "resourceRules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
                ]
            },
            "validations": [
                {
                    "expression": "'team' in object.metadata.labels",
                    "message": "pods must have a label team",
                }
            ],
        },
    }
    here = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
    binding = {
        "apiVersion": BINDINGS.api_version,
        "kind": BINDINGS.kind,
        "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"], "matchResources": here},
    }
    async with existing(client, POLICIES, policy), existing(client, BINDINGS, binding):
        async with asyncio.timeout(30):
            while await accepted(client, namespace):  # noqa: ASYNC110 - the server takes a moment to heed it
                await asyncio.sleep(0.1)
        await operator.apply({"min": 1})
        assert "pods must have a label team" in await operator.until("False", "PodsRefused")
        assert await operator.pods() == []
    await operator.until("False", "Unschedulable")


async def test_a_priority_class_that_comes_later_is_enough(operator, client, namespace):
    """The API server itself refuses pods of a class that it does not know."""
    name = f"high-{namespace}"
    await operator.apply({"min": 1}, scheduling={"priorityClassName": name})
    assert f"no PriorityClass with name {name} was found" in await operator.until("False", "PodsRefused")
    body = {"apiVersion": PRIORITIES.api_version, "kind": PRIORITIES.kind, "metadata": {"name": name}, "value": 10}
    async with existing(client, PRIORITIES, body):
        await operator.until("False", "Unschedulable")
        [pod] = await operator.pods()
        assert (pod["spec"]["priorityClassName"], pod["spec"]["priority"]) == (name, 10)


async def test_the_clusters_own_gang_object_is_accepted(operator, client, namespace):
    """The API server has the group and the pods name it; placing them is shown where there are nodes."""
    groups = Resource("PodGroup", "scheduling.k8s.io/v1alpha2", "podgroups")
    await operator.apply({"min": 2}, scheduling={"gang": "native"})
    await operator.until("False", "Unschedulable")
    [group] = (await client.request("list", groups, namespace))["items"]
    assert group["spec"]["schedulingPolicy"]["gang"]["minCount"] == 2
    named = {pod["spec"]["schedulingGroup"]["podGroupName"] for pod in await operator.pods()}
    assert named == {group["metadata"]["name"]}
    with pytest.raises(NotFound):
        await client.request("get", groups, namespace, "another")
