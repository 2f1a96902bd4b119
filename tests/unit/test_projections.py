"""What the operator makes of raw pods and nodes, with statuses as real kubelets write them."""

import pytest

from llmtrain_operator.cluster.projections import job_view, node_view, pod_view
from llmtrain_operator.cluster.writes import merge_patch

LABELS = {"llmtrain.io/job": "a", "llmtrain.io/member-index": "2", "llmtrain.io/incarnation": "3"}


def pod(status=None, spec=None, labels=LABELS, **metadata):
    metadata = {"name": "a-2-3", "namespace": "ns", "uid": "u", "labels": labels, "creationTimestamp": "t", **metadata}
    return {"metadata": metadata, "spec": spec or {"nodeName": "n1"}, "status": status or {"phase": "Running"}}


def container(name="trainer", **state):
    return {"name": name, "state": state}


def test_a_working_pod():
    view = pod_view(
        pod(
            {
                "phase": "Running",
                "podIP": "10.0.0.1",
                "conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
                "containerStatuses": [container(running={"startedAt": "t"})],
            },
            ownerReferences=[
                {"kind": "LLMTrainJob", "uid": "other"},
                {"kind": "LLMTrainJob", "uid": "owner", "controller": True},
            ],
        )
    )
    assert (view.name, view.job, view.index, view.incarnation, view.owner) == ("a-2-3", "a", 2, 3, "owner")
    assert (view.phase, view.ready, view.scheduled, view.node, view.ip) == ("Running", True, True, "n1", "10.0.0.1")
    assert (view.reason, view.message, view.exit_code, view.deleting) == ("", "", None, False)


def test_where_a_pods_trainer_comes_from():
    """Its own image, or the one that the agent is copied in from."""
    ours = {"containers": [{"name": "sidecar", "image": "s"}, {"name": "trainer", "image": "ours:1"}]}
    assert pod_view(pod(spec=ours)).trainer == "ours:1"
    assert pod_view(pod(spec=ours | {"initContainers": [{"name": "agent", "image": "op:1"}]})).trainer == "op:1"


def test_what_a_pod_keeps_off():
    """As it was made; most keep off nothing."""
    assert pod_view(pod(annotations={"llmtrain.io/avoids": "n1,n2.example"})).avoids == ("n1", "n2.example")
    assert pod_view(pod()).avoids == ()


def test_a_pod_of_somebody_else_with_our_labels_has_no_job_behind_it():
    """Nobody may delete it as what a job left."""
    view = pod_view(pod({}, ownerReferences=[{"kind": "ReplicaSet", "uid": "theirs", "controller": True}]))
    assert view.owner == ""


@pytest.mark.parametrize(
    "labels",
    [None, {}, LABELS | {"llmtrain.io/member-index": "x"}, LABELS | {"llmtrain.io/incarnation": "-1"}],
    ids=["none", "empty", "index-not-a-number", "incarnation-negative"],
)
def test_a_pod_without_the_labels_is_none_of_ours(labels):
    assert pod_view(pod(labels=labels)) is None


@pytest.mark.parametrize(
    ("status", "reason", "message", "exit_code"),
    [
        (
            {"containerStatuses": [container(waiting={"reason": "ImagePullBackOff", "message": "not found"})]},
            "ImagePullBackOff",
            "not found",
            None,
        ),
        (
            {"containerStatuses": [container(waiting={"reason": "CreateContainerError", "message": "no such file"})]},
            "CreateContainerError",
            "no such file",
            None,
        ),
        ({"containerStatuses": [container(waiting={"reason": "ContainerCreating"})]}, "", "", None),
        ({"containerStatuses": [container(waiting={"reason": "PodInitializing"})]}, "", "", None),
        (
            {"containerStatuses": [container(terminated={"exitCode": 137, "reason": "OOMKilled"})]},
            "OOMKilled",
            "exit code 137",
            137,
        ),
        (
            {"containerStatuses": [container(terminated={"exitCode": 5, "reason": "OOMKilled"})]},
            "Error",
            "exit code 5",
            5,
        ),
        (
            {"containerStatuses": [container(terminated={"exitCode": 1, "reason": "Error", "message": " boom\n"})]},
            "Error",
            "boom",
            1,
        ),
        ({"containerStatuses": [container(terminated={"exitCode": 0, "reason": "Completed"})]}, "", "", 0),
        (
            {
                "containerStatuses": [
                    container("sidecar", terminated={"exitCode": 2, "reason": "Error"}),
                    container(terminated={"exitCode": 1, "reason": "Error"}),
                ]
            },
            "Error",
            "exit code 1",
            1,
        ),
        (
            {
                "initContainerStatuses": [container("agent", terminated={"exitCode": 3, "reason": "Error"})],
                "containerStatuses": [container(waiting={"reason": "PodInitializing"})],
            },
            "Error",
            "container agent: exit code 3",
            None,
        ),
        (
            {
                "reason": "Evicted",
                "message": "low on memory",
                "containerStatuses": [container(terminated={"exitCode": 137, "reason": "Error"})],
            },
            "Evicted",
            "low on memory",
            137,
        ),
        (
            {
                "conditions": [
                    {
                        "type": "DisruptionTarget",
                        "status": "True",
                        "reason": "PreemptionByScheduler",
                        "message": "preempted",
                    }
                ],
                "containerStatuses": [container(terminated={"exitCode": 143, "reason": "Error"})],
            },
            "PreemptionByScheduler",
            "preempted",
            143,
        ),
    ],
    ids=[
        "image-pull",
        "create-error",
        "creating-is-fine",
        "initialising-is-fine",
        "oom",
        "oom-of-a-bystander-is-not-one",
        "trainers-own-words",
        "success-is-no-trouble",
        "the-trainer-counts-more-than-a-sidecar",
        "init-container",
        "eviction-explains-the-exit",
        "preemption-explains-the-exit",
    ],
)
def test_the_most_telling_trouble_is_named(status, reason, message, exit_code):
    view = pod_view(pod({"phase": "Running", **status}))
    assert (view.reason, view.message, view.exit_code) == (reason, message, exit_code)


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        (
            {"status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"},
            "0/3 nodes are available",
        ),
        ({"status": "False", "reason": "SchedulingGated", "message": "waiting for gates"}, "waiting for gates"),
        (None, ""),
    ],
    ids=["no-room", "gated", "not-looked-at-yet"],
)
def test_an_unscheduled_pod_says_why(condition, words):
    conditions = [{"type": "PodScheduled", **condition}] if condition else []
    view = pod_view(pod({"phase": "Pending", "conditions": conditions}, spec={"containers": []}))
    assert (view.scheduled, view.node, view.unschedulable_message) == (False, "", words)


def test_a_deleting_pod_and_one_without_status():
    assert pod_view(pod(deletionTimestamp="t")).deleting
    bare = pod()
    del bare["status"]
    assert pod_view(bare).phase == "Pending"


def test_nodes():
    raw = {
        "metadata": {"name": "n1", "uid": "u"},
        "spec": {
            "unschedulable": True,
            "taints": [
                {"key": "a/b", "value": "1700000000", "effect": "NoSchedule"},
                {"key": "c", "effect": "NoExecute"},
            ],
        },
        "status": {"conditions": [{"type": "Ready", "status": "Unknown"}], "nodeInfo": {"bootID": "b"}},
    }
    view = node_view(raw)
    assert (view.name, view.ready, view.schedulable, view.boot_id) == ("n1", False, False, "b")
    assert view.taints == ("a/b:NoSchedule", "c:NoExecute")
    assert not node_view({"metadata": {"name": "n2", "uid": "v"}}).ready


@pytest.mark.parametrize(
    ("labels", "memory"),
    [
        ({"nvidia.com/gpu.memory": "81559", "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}, 81_559 * 2**20),
        ({"cloud.google.com/gke-accelerator": "nvidia-l4"}, 24 * 10**9),
        ({"nvidia.com/gpu.memory": "much", "nvidia.com/gpu.product": "unheard-of"}, 0),
        ({}, 0),
    ],
    ids=["counted", "by name", "odd", "none"],
)
def test_the_memory_of_a_nodes_accelerators(labels, memory):
    """As its labels tell it: the count comes before the name."""
    assert node_view({"metadata": {"name": "n", "uid": "v", "labels": labels}}).accelerator_memory == memory


def test_jobs_lose_only_their_managed_fields():
    raw = {"metadata": {"name": "a", "managedFields": [1]}, "spec": {"x": 1}, "status": {}}
    assert job_view(raw) == {"metadata": {"name": "a"}, "spec": {"x": 1}, "status": {}}
    assert "managedFields" in raw["metadata"]


NAN = float("nan")


@pytest.mark.parametrize(
    ("old", "new", "patch"),
    [
        ({}, {}, {}),
        ({"a": 1}, {"a": 1}, {}),
        ({"a": 1}, {"a": 2}, {"a": 2}),
        ({"a": 1, "b": 2}, {"b": 2}, {"a": None}),
        ({"a": 1}, {"a": None}, {"a": None}),
        ({"p": {"x": 1, "y": 2}}, {"p": {"x": 1, "y": 3}}, {"p": {"y": 3}}),
        ({"p": {"x": 1}}, {"p": {"x": 1}}, {}),
        ({"p": {"x": 1}}, {"p": {"z": 1}}, {"p": {"x": None, "z": 1}}),
        ({"l": [1, 2]}, {"l": [1]}, {"l": [1]}),
        ({}, {"p": {"x": 1, "y": None}}, {"p": {"x": 1}}),
        ({"p": "was a string"}, {"p": {}}, {"p": {}}),
        ({"p": {"loss": 1.0}}, {"p": {"loss": NAN}}, {"p": {"loss": None}}),
        ({"p": {}}, {"p": {"loss": NAN}}, {}),
    ],
    ids=[
        "empty",
        "equal",
        "change",
        "removal",
        "none-is-absent",
        "inner-change",
        "inner-equal",
        "inner-removal",
        "lists-are-replaced",
        "new-object-without-nones",
        "object-replaces-scalar",
        "nan-is-absent",
        "nan-again-is-no-change",
    ],
)
def test_merge_patch(old, new, patch):
    assert merge_patch(old, new) == patch
