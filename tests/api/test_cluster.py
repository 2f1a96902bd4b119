"""The controller's port against a real API server."""

import asyncio
import contextlib

import pytest

from llmtrain_operator.cluster.cluster import Cluster
from llmtrain_operator.cluster.resources import BY_KIND, EVENTS, JOBS, PODS
from llmtrain_operator.contract import names
from llmtrain_operator.ports import Conflict, Rejected

SPEC = {"model": {"preset": "gpt-tiny"}, "data": {"source": "/data"}, "training": {"maxSteps": 1}}


class Harness:
    """A running cluster port, and waiting for what wakes it brings."""

    def __init__(self, client, namespaces=()):
        self.woken = []
        self._news = asyncio.Event()
        self.port = Cluster(client, self._wake, namespaces)

    def _wake(self, key):
        self.woken.append(key)
        self._news.set()

    async def until(self, condition):
        async with asyncio.timeout(20):
            while not condition():
                self._news.clear()
                await self._news.wait()


@pytest.fixture
async def harness(client, namespace):
    async with running(client, [namespace]) as harness:
        yield harness


@contextlib.asynccontextmanager
async def running(client, namespaces=()):
    harness = Harness(client, namespaces)
    task = asyncio.create_task(harness.port.run())
    await asyncio.wait_for(harness.port.synced(), 20)
    yield harness
    task.cancel()
    await asyncio.wait([task])


async def new_job(client, namespace, name="a"):
    body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": name}, "spec": SPEC}
    return await client.request("create", JOBS, namespace, body=body)


def pod(job, index=0, incarnation=1, owner=None):
    name = job["metadata"]["name"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{name}-{index}-{incarnation}",
            "namespace": job["metadata"]["namespace"],
            "labels": {
                names.LABEL_JOB: name,
                names.LABEL_INDEX: str(index),
                names.LABEL_INCARNATION: str(incarnation),
            },
            "ownerReferences": [
                {
                    "apiVersion": names.API_VERSION,
                    "kind": names.KIND,
                    "name": name,
                    "uid": owner or job["metadata"]["uid"],
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        # Unschedulable for ever, so that deletion needs no kubelet.
        "spec": {"containers": [{"name": "trainer", "image": "none"}], "nodeSelector": {"exists": "never"}},
    }


async def test_jobs_and_pods_are_seen_and_wake_their_key(client, harness, namespace):
    key = f"{namespace}/a"
    job = await new_job(client, namespace)
    await harness.until(lambda: harness.port.job(key) is not None)
    assert harness.port.jobs() == [key]
    assert "managedFields" not in harness.port.job(key)["metadata"]
    for index in (1, 0):
        await harness.port.create(pod(job, index))
    assert [view.index for view in harness.port.pods(key)] == [0, 1], "own writes are visible at once"
    harness.woken.clear()
    await client.request("delete", PODS, namespace, "a-1-1")
    await harness.until(lambda: len(harness.port.pods(key)) == 1)
    assert set(harness.woken) == {key}


async def test_create_again_is_fine_but_only_of_the_same_owner(client, harness, namespace):
    job = await new_job(client, namespace)
    await harness.port.create(pod(job))
    await harness.port.create(pod(job))
    with pytest.raises(Conflict, match="not ours"):
        await harness.port.create(pod(job, owner="11111111-2222-3333-4444-555555555555"))


async def test_pods_of_an_earlier_job_of_the_name_are_not_the_new_ones(client, harness, namespace):
    job = await new_job(client, namespace)
    key = f"{namespace}/a"
    await harness.until(lambda: harness.port.job(key) is not None)
    await harness.port.create(pod(job, 0, owner="11111111-2222-3333-4444-555555555555"))
    await harness.port.create(pod(job, 1))
    assert [view.index for view in harness.port.pods(key)] == [1]


async def test_what_a_job_left_is_an_orphan_only_if_the_server_says_so(client, harness, namespace):
    """Our view of jobs may be behind that of pods, and what nobody's job owns is none of our business."""
    job = await new_job(client, namespace)
    key = f"{namespace}/a"
    behind = Cluster(client, lambda _: None, [namespace])
    await behind.create(pod(job, 0))
    assert behind.job(key) is None
    assert [view.index for view in behind.pods(key)] == [0]
    assert await behind.orphans(key) == ()
    freed = pod(job, 1)
    del freed["metadata"]["ownerReferences"]
    await behind.create(freed)
    await client.request("delete", JOBS, namespace, "a")
    await harness.until(lambda: harness.port.job(key) is None)
    assert [view.index for view in await behind.orphans(key)] == [0]
    assert (list(behind.jobs()), behind.known()) == ([], {key})


async def test_what_an_earlier_job_of_the_name_left_is_an_orphan(client, namespace):
    """Seen by one who does not watch, because the garbage collector may be quicker."""
    job = await new_job(client, namespace)
    seen = Cluster(client, lambda _: None, [namespace])
    await seen.patch_desired(job, 1)
    await seen.create(pod(job, 0, owner="11111111-2222-3333-4444-555555555555"))
    await seen.create(pod(job, 1))
    assert seen.job(f"{namespace}/a") is not None
    assert [view.index for view in await seen.orphans(f"{namespace}/a")] == [0]


async def test_delete_by_uid_refuses_another_incarnation(client, harness, namespace):
    """A delete meant for an object that is gone does not hit its successor of the same name."""
    job = await new_job(client, namespace)
    key = f"{namespace}/a"
    await harness.port.create(pod(job))
    [first] = harness.port.pods(key)
    await harness.port.delete("Pod", namespace, first.name, first.uid, grace=0)
    await harness.until(lambda: not harness.port.pods(key))
    await harness.port.create(pod(job))
    await harness.port.delete("Pod", namespace, first.name, first.uid)
    [second] = harness.port.pods(key)
    assert second.uid != first.uid
    found = await client.request("get", PODS, namespace, second.name)
    assert "deletionTimestamp" not in found["metadata"]
    await harness.port.delete("Pod", namespace, "never-was", first.uid)


async def test_status_is_replaced_whole_and_only_as_observed(client, harness, namespace):
    """Fields that went away are removed; a job that changed meanwhile raises Conflict; no change is no request."""
    await new_job(client, namespace)
    key = f"{namespace}/a"
    await harness.until(lambda: harness.port.job(key) is not None)
    first = harness.port.job(key)
    await harness.port.patch_status(first, {"state": "Starting", "nodes": "0/1", "ledger": {"starting": 1.0}})
    second = harness.port.job(key)
    assert second["status"]["nodes"] == "0/1"
    await harness.port.patch_status(second, {"state": "Running", "ledger": {"productive": 2.0}})
    third = harness.port.job(key)
    assert third["status"]["ledger"] == {"productive": 2.0}
    assert "nodes" not in third["status"]
    with pytest.raises(Conflict):
        await harness.port.patch_status(second, {"state": "Failed"})
    await harness.port.patch_status(third, third["status"])
    assert harness.port.job(key)["metadata"]["resourceVersion"] == third["metadata"]["resourceVersion"]


async def test_a_write_to_a_job_that_is_gone_is_a_conflict(client, harness, namespace):
    job = await new_job(client, namespace)
    await client.request("delete", JOBS, namespace, "a")
    with pytest.raises(Conflict, match="deleted"):
        await harness.port.patch_status(job, {"state": "Running"})


async def test_desired_is_filled_in(client, harness, namespace):
    await new_job(client, namespace)
    key = f"{namespace}/a"
    await harness.until(lambda: harness.port.job(key) is not None)
    await harness.port.patch_desired(harness.port.job(key), 1)
    assert harness.port.job(key)["spec"]["nodes"]["desired"] == 1


async def test_apply_is_idempotent_and_keeps_what_others_added(client, harness, namespace):
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "a", "namespace": namespace, "labels": {"ours": "1"}},
        "spec": {"clusterIP": "None", "selector": {"x": "y"}},
    }
    services = BY_KIND["Service"]
    await harness.port.apply(service)
    await client.request("patch", services, namespace, "a", body={"metadata": {"labels": {"theirs": "2"}}})
    before = await client.request("get", services, namespace, "a")
    await harness.port.apply(service)
    after = await client.request("get", services, namespace, "a")
    assert after["metadata"]["labels"] == {"ours": "1", "theirs": "2"}
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


async def test_an_invalid_object_is_rejected_with_the_servers_words(client, harness, namespace):
    job = await new_job(client, namespace)
    bad = pod(job)
    bad["spec"]["containers"][0]["resources"] = {"limits": {"memory": "much"}}
    with pytest.raises(Rejected, match="quantities must match"):
        await harness.port.create(bad)


async def test_repeated_events_are_one_object_with_a_count(client, harness, namespace):
    job = await new_job(client, namespace)
    harness.port.post_event(job, "RoundStarted", "round 1 runs")
    harness.port.post_event(job, "PodLost", "a-0-1 is gone", warning=True)
    told = await events(client, namespace, lambda found: len(found) == 2)
    assert told["PodLost"]["type"] == "Warning"
    assert told["RoundStarted"]["involvedObject"]["uid"] == job["metadata"]["uid"]
    for _ in range(5):
        harness.port.post_event(job, "PodLost", "a-0-1 is gone", warning=True)
    told = await events(client, namespace, lambda found: found["PodLost"]["count"] == 6)
    assert len(told) == 2


async def events(client, namespace, condition):
    """The namespace's events by reason, once they satisfy `condition`."""
    async with asyncio.timeout(20):
        while True:
            listed = await client.request("list", EVENTS, namespace)
            found = {e["reason"]: e for e in listed["items"] if e["involvedObject"]["kind"] == names.KIND}
            with contextlib.suppress(KeyError):
                if condition(found):
                    return found
            await asyncio.sleep(0.05)


async def test_a_status_wakes_nobody(client, harness, namespace):
    """Only the leader writes it; what it wrote is in the cache when the write returns, and is no news."""
    job = await new_job(client, namespace)
    key = f"{namespace}/a"
    await harness.until(lambda: harness.port.job(key))
    harness.woken.clear()
    await harness.port.patch_status(harness.port.job(key), {"state": "Pending"})
    assert harness.port.job(key)["status"] == {"state": "Pending"}
    await client.request("patch", JOBS, namespace, "a", body={"metadata": {"annotations": {"x": "y"}}})
    await harness.until(lambda: harness.port.job(key)["metadata"].get("annotations"))
    assert harness.woken == [key]
    assert harness.port.job(key)["metadata"]["uid"] == job["metadata"]["uid"]


async def test_a_node_wakes_the_jobs_on_it(client, namespace, kubeconfig):
    async with running(client) as harness:
        job = await new_job(client, namespace)
        placed = pod(job)
        placed["spec"] = {"containers": [{"name": "trainer", "image": "none"}], "nodeName": f"node-{namespace}"}
        await harness.port.create(placed)
        harness.woken.clear()
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"node-{namespace}"}}
        await client.request("create", BY_KIND["Node"], body=node)
        await harness.until(lambda: harness.port.node(f"node-{namespace}") is not None)
        assert f"{namespace}/a" in harness.woken
        assert not harness.port.node(f"node-{namespace}").ready
        await client.request("delete", BY_KIND["Node"], name=f"node-{namespace}")
        await harness.until(lambda: harness.port.node(f"node-{namespace}") is None)
        await client.request("delete", PODS, namespace, "a-0-1", body={"gracePeriodSeconds": 0})
