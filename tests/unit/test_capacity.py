"""What room nodes have for one more member, as far as we can see."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_operator.api import JobSpec
from llmtrain_operator.capacity import PODS, Inventory, Needs, amounts, needs, requests_of
from llmtrain_operator.manifests import Settings, member_pod
from llmtrain_operator.state import NodeView, PodView
from tests.support.planner import JOB, pod
from tests.support.specs import patched

GPU = "nvidia.com/gpu"
DEVICE = Needs("d/j", ((GPU, 1000),))


def node(name: str = "n1", gpus: int = 1, **fields: Any) -> NodeView:
    offers = amounts({"cpu": "8", GPU: gpus, PODS: 110})
    return NodeView(**({"name": name, "uid": name, "ready": True, "schedulable": True, "boot_id": "",
                        "allocatable": offers} | fields))  # fmt: skip


def inventory(*nodes: NodeView, pods: tuple[PodView, ...] = ()) -> Inventory:
    made = Inventory()
    for each in nodes:
        made.node_changed(each.name, each)
    for each in pods:
        made.pod_changed(None, each)
    return made


def wanting(index: int, where: str = "n1", gpus: int = 1, **fields: Any) -> PodView:
    return pod(index, node=where, requests=((GPU, gpus * 1000),), **fields)


@pytest.mark.parametrize(
    ("nodes", "wanted", "room"),
    [
        ([node()], DEVICE, 1),
        ([node(gpus=4), node("n2", 2)], DEVICE, 6),
        ([node(gpus=4)], Needs("d/j", ((GPU, 3000),)), 1),
        ([node(gpus=0)], DEVICE, 0),
        ([node(allocatable=amounts({"cpu": "8"}))], DEVICE, 0),
        ([node(ready=False)], DEVICE, 0),
        ([node(schedulable=False)], DEVICE, 0),
        ([node(taints=("k:NoSchedule",))], DEVICE, 0),
        ([node(taints=("k:PreferNoSchedule",))], DEVICE, 1),
        ([node(taints=("k:NoSchedule",))], dataclasses.replace(DEVICE, tolerates=(("k", ""),)), 1),
        ([node(taints=("k:NoSchedule",))], dataclasses.replace(DEVICE, tolerates=(("", ""),)), 1),
        ([node(taints=("k:NoExecute",))], dataclasses.replace(DEVICE, tolerates=(("k", "NoSchedule"),)), 0),
        ([node()], dataclasses.replace(DEVICE, selector=(("disk", "fast"),)), 0),
        ([node(labels=(("disk", "fast"), ("x", "y")))], dataclasses.replace(DEVICE, selector=(("disk", "fast"),)), 1),
        ([node()], dataclasses.replace(DEVICE, keeps_off=("n1",)), 0),
        ([node(gpus=4), node("n2", 4)], dataclasses.replace(DEVICE, alone=True), 2),
        ([node()], Needs("d/j"), 10),
    ],
    ids=[
        "one", "several", "large", "no-device", "not-offered", "not-ready", "cordoned", "tainted", "preferred-against",
        "tolerated", "all-tolerated", "other-effect", "not-selected", "selected", "avoided", "alone", "nothing-asked",
    ],
)  # fmt: skip
def test_room(nodes, wanted, room):
    """What nodes offer counts, if they take the pod at all; ten members are asked for here."""
    assert inventory(*nodes).room(wanted, 10) == room


def test_what_our_members_hold_is_taken():
    """Of whatever job; those that have ended hold nothing, nor do those without a node."""
    there = (wanting(0), wanting(1, gpus=2, job="other"), wanting(2, phase="Failed"), wanting(3, ""))
    assert inventory(node(gpus=4), pods=there).room(DEVICE, 10) == 1


def test_a_job_that_wants_its_members_apart():
    """A node that has one of them has no room for another, but for another job's."""
    seen = inventory(node(gpus=8), pods=(wanting(0),))
    alone = dataclasses.replace(DEVICE, alone=True)
    assert (seen.room(alone, 9), seen.room(dataclasses.replace(alone, job="d/other"), 9)) == (0, 1)


def test_where_a_member_leaves_there_is_room_for_another():
    """If its place is large enough for that one."""
    seen = inventory(node(gpus=2), pods=(wanting(0, gpus=2),))
    fits = [seen.fits_after(Needs("d/b", ((GPU, n * 1000),)), wanting(0, gpus=2)) for n in (1, 2, 3)]
    assert fits == [True, True, False]


def test_news_of_room_is_told_apart_from_other_news():
    """A node that becomes usable or offers more is; a heartbeat, or a node that goes, is not; so for pods."""
    seen = Inventory()
    assert not seen.node_changed("n1", node(ready=False))
    assert seen.node_changed("n1", node())
    assert not seen.node_changed("n1", node(boot_id="another"))
    assert seen.node_changed("n1", node(gpus=2))
    assert not seen.node_changed("n1", None)
    waits = wanting(0, "")
    assert not seen.pod_changed(None, waits)
    assert not seen.pod_changed(waits, wanting(0))
    assert not seen.pod_changed(wanting(0), wanting(0, ready=False))
    assert seen.pod_changed(wanting(0), wanting(0, phase="Succeeded"))
    assert not seen.pod_changed(wanting(0, phase="Succeeded"), None)


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["", "n1", "n2"]), st.booleans()), max_size=30))
def test_single_changes_add_up_to_what_is_there(changes):
    """Whatever comes and goes in whatever order, the room is that of an inventory made from scratch."""
    nodes, there = (node(gpus=8), node("n2", 3)), {}
    seen = inventory(*nodes)
    for index, where, stays in changes:
        new = wanting(index, where) if stays else None
        seen.pod_changed(there.pop(index, None), new)
        if new:
            there[index] = new
    assert seen.room(DEVICE, 99) == inventory(*nodes, pods=tuple(there.values())).room(DEVICE, 99)


@pytest.mark.parametrize(
    ("spec", "asks"),
    [
        ({"containers": [{"resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "1", GPU: 2}}}]},
         (("cpu", 100), (GPU, 2000))),
        ({"containers": [{}, {"resources": {"requests": {"cpu": 1}}}], "overhead": {"cpu": "50m"}}, (("cpu", 1050),)),
        ({"containers": [{"resources": {"requests": {"cpu": 1}}}],
          "initContainers": [{"resources": {"requests": {"cpu": 3}}},
                             {"restartPolicy": "Always", "resources": {"requests": {"cpu": 1}}}]}, (("cpu", 3000),)),
        ({}, ()),
    ],
    ids=["limits-are-requests", "sum-and-overhead", "init-and-sidecar", "nothing"],
)  # fmt: skip
def test_what_a_pod_asks_for(spec, asks):
    """As the scheduler counts it."""
    assert requests_of(spec) == asks


def test_what_a_member_needs():
    """From the pod that would be made: the spec's devices, the template's selector, tolerations and affinity."""
    apart = {"labelSelector": {"matchLabels": {"llmtrain.io/job": "j"}}, "topologyKey": "kubernetes.io/hostname"}
    template = {
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}, {"key": "late", "tolerationSeconds": 5}],
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}},
    }
    patch = {"nodes": {"procPerNode": 2, "acceleratorResource": GPU}, "template": {"spec": template}}
    made = needs(member_pod(JOB, JobSpec.model_validate(patched(patch)), 0, 1, Settings("t", "o", "wss://c", "pem")))
    assert dict(made.requests)[GPU] == 2000
    assert "memory" in dict(made.requests), "snapshots take some"
    assert (made.job, made.selector, made.tolerates, made.alone) == (
        "d/j", (("disk", "fast"),), (("gpu", ""),), True
    )  # fmt: skip
