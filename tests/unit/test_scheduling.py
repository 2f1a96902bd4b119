"""What spec.scheduling makes of pods and group objects, and what it waits for."""

from __future__ import annotations

import dataclasses

import kubernetes_validate
import pytest

from llmtrain_operator import manifests, scheduling
from llmtrain_operator.api import JobSpec, JobStatus
from llmtrain_operator.api.validation import problems
from llmtrain_operator.conditions import find
from llmtrain_operator.plan import plan
from llmtrain_operator.scheduling import GROUPS, KUEUE, Api
from llmtrain_operator.state import CreatePod, DeletePod, JobView, Observed, PodView

JOB = JobView("j", "d", "12345678-aaaa", 1)
SETTINGS = manifests.Settings("trainer:1", "operator:1", "wss://c.llmtrain.svc:7443", "PEM")
NOW = 1_700_000_000.0


def spec(nodes=None, template=None, **scheduled) -> JobSpec:
    """A job for two to four members with this `scheduling`."""
    base = {"model": {"preset": "gpt-tiny"}, "data": {"source": "/data"}, "training": {"maxSteps": 1}}
    base |= {"nodes": nodes or {"min": 2, "max": 4, "desired": 4}, "template": template or {}}
    return JobSpec.model_validate(base | ({"scheduling": scheduled} if scheduled else {}))


def member(job_spec: JobSpec, index: int = 0, size: int = 2) -> dict:
    """A member's pod, checked to be one."""
    pod = manifests.member_pod(JOB, job_spec, index, 1, SETTINGS, size)
    kubernetes_validate.validate(pod, "1.36", strict=True)
    return pod


def pod(index: int, *, node="", group_size=2, **fields) -> PodView:
    """A member pod, waiting unless it has a node."""
    values = {
        "name": f"j-{index}-1", "namespace": "d", "uid": f"u{index}", "job": "j", "index": index, "incarnation": 1,
        "phase": "Pending", "ready": False, "node": node, "deleting": False, "ip": "", "reason": "", "message": "",
        "exit_code": None, "created": "", "scheduled": bool(node), "unschedulable_message": "", "owner": JOB.uid,
        "group_size": group_size,
    }  # fmt: skip
    return PodView(**(values | fields))


def test_members_keep_apart_where_they_can_unless_told_otherwise() -> None:
    (spread,) = member(spec())["spec"]["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    strict = member(spec(topology={"key": "topology.kubernetes.io/zone", "required": True}))
    (spread,) = strict["spec"]["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("topology.kubernetes.io/zone", "DoNotSchedule")


@pytest.mark.parametrize("required", [False, True])
def test_members_stay_together_when_packed(required) -> None:
    packed = member(spec(topology={"policy": "pack", "key": "rack", "required": required}))["spec"]
    assert "topologySpreadConstraints" not in packed
    (terms,) = packed["affinity"]["podAffinity"].values()
    term = terms[0] if required else terms[0]["podAffinityTerm"]
    assert (len(terms), term["topologyKey"]) == (1, "rack")
    assert term["labelSelector"]["matchLabels"] == manifests.selector(JOB)


def test_a_plain_job_has_no_group() -> None:
    assert scheduling.group_size(spec(), ()) == 0
    assert scheduling.groups(JOB, spec(), 0) == []
    assert (
        "annotations" not in member(spec(), size=0)["metadata"] or not member(spec(), size=0)["metadata"]["annotations"]
    )


@pytest.mark.parametrize(
    ("gang", "body", "scheduler"),
    [
        ("native", {"schedulingPolicy": {"gang": {"minCount": 2}}}, None),
        ("coscheduling", {"minMember": 2}, "scheduler-plugins-scheduler"),
        ("volcano", {"minMember": 2, "queue": "q", "priorityClassName": "high"}, "volcano"),
    ],
)
def test_every_member_names_the_gangs_group(gang, body, scheduler) -> None:
    """Each scheduler has its own object, its own way to name it on a pod, and most a scheduler of their own."""
    wanted = spec(gang=gang, priorityClassName="high", **({"queue": "q"} if gang == "volcano" else {}))
    group = manifests.children(JOB, wanted, SETTINGS, 2)[-1]
    assert (group["apiVersion"], group["kind"], group["spec"]) == (GROUPS[gang].api_version, "PodGroup", body)
    assert group["metadata"]["ownerReferences"][0]["uid"] == JOB.uid
    for index in (0, 3):
        made = member(wanted, index)
        said = {
            "native": made["spec"].get("schedulingGroup", {}).get("podGroupName"),
            "coscheduling": made["metadata"]["labels"].get("scheduling.x-k8s.io/pod-group"),
            "volcano": made["metadata"]["annotations"].get("scheduling.k8s.io/group-name"),
        }
        assert said == {**dict.fromkeys(said), gang: group["metadata"]["name"]}
        assert (made["spec"].get("schedulerName"), made["spec"]["priorityClassName"]) == (scheduler, "high")
        assert "schedulingGates" not in made["spec"], "Volcano's queue is not Kueue's"


def test_kueue_gets_the_least_that_trains_as_one_group_and_the_others_one_by_one() -> None:
    wanted = spec(queue="team-a")
    first, last = member(wanted, 1), member(wanted, 2)
    name = scheduling.group_name(JOB, 2)
    assert first["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"] == name
    assert first["metadata"]["annotations"]["kueue.x-k8s.io/pod-group-total-count"] == "2"
    assert "kueue.x-k8s.io/pod-group-name" not in last["metadata"]["labels"]
    for each in (first, last):
        assert each["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
        assert each["spec"]["schedulingGates"] == [{"name": "kueue.x-k8s.io/admission"}]


def test_gates_of_the_users_own_are_kept() -> None:
    gated = member(spec(queue="q", template={"spec": {"schedulingGates": [{"name": "mine"}]}}))
    assert [gate["name"] for gate in gated["spec"]["schedulingGates"]] == ["kueue.x-k8s.io/admission", "mine"]


def test_a_groups_name_fits_into_a_label() -> None:
    long = dataclasses.replace(JOB, name="n" * 58)
    assert len(scheduling.group_name(long, 10_000)) <= 63
    assert scheduling.group_name(long, 2) != scheduling.group_name(long, 3)


def test_a_gang_keeps_its_size_while_a_member_has_a_node() -> None:
    """Schedulers cannot resize a group: what waits is made anew only if the whole gang waits."""
    three = spec({"min": 3, "max": 4}, gang="native")
    waiting, placed = (pod(0), pod(1)), (pod(0, node="n"), pod(1))
    assert scheduling.group_size(three, waiting) == 3
    assert scheduling.misgrouped(waiting, 3) == waiting
    assert scheduling.group_size(three, placed) == 2
    assert scheduling.misgrouped(placed, 2) == ()
    ungrouped = (pod(0, node="n", group_size=0), pod(1, group_size=0))
    assert scheduling.group_size(three, ungrouped) == 0, "asked for later: what runs has no group to join"
    assert scheduling.group_size(three, (pod(0, node="n", phase="Failed"),)) == 3


def served(*apis: Api):
    return lambda api: api in apis


@pytest.mark.parametrize(
    ("wanted", "missing", "reason", "remedy"),
    [
        ({"gang": "native"}, GROUPS["native"], "GangSchedulerMissing", "GangScheduling"),
        ({"gang": "coscheduling"}, GROUPS["coscheduling"], "GangSchedulerMissing", "scheduler-plugins"),
        ({"gang": "volcano", "queue": "q"}, GROUPS["volcano"], "GangSchedulerMissing", "Install Volcano"),
        ({"queue": "q"}, KUEUE[0], "QueueMissing", "Install Kueue"),
        ({"queue": "q"}, KUEUE[1], "QueueMissing", "Install Kueue"),
    ],
)
def test_what_is_asked_for_and_absent_is_named_with_the_remedy(wanted, missing, reason, remedy) -> None:
    """And it is no obstacle once it is there."""
    found = scheduling.obstacle(spec(**wanted), served())
    assert found is not None
    assert (found.reason, remedy in found.message) == (reason, True)
    assert scheduling.obstacle(spec(**wanted), served(missing)) is None
    assert scheduling.obstacle(spec(), served()) is None


def step(job_spec: JobSpec, status: JobStatus, **seen):
    return plan(JOB, job_spec, (), status, Observed(children_applied=True, **seen), NOW)


def condition(status: JobStatus):
    found = find(status.conditions, "Scheduled")
    assert found is not None
    return found


def test_no_pod_is_created_while_something_is_missing_and_all_are_when_it_comes() -> None:
    wanted = spec(gang="volcano")
    missing = scheduling.obstacle(wanted, served())
    blocked = step(wanted, JobStatus(), obstacle=missing)
    assert not any(isinstance(action, CreatePod) for action in blocked.actions)
    assert (condition(blocked.status).status, condition(blocked.status).reason) == ("False", "GangSchedulerMissing")
    assert [event.reason for event in blocked.events] == ["GangSchedulerMissing"]
    again = step(wanted, blocked.status, obstacle=missing)
    assert not again.events, "told once"
    free = step(wanted, again.status)
    assert [action for action in free.actions if isinstance(action, CreatePod)] == [CreatePod(i, 1) for i in range(4)]


def test_a_waiting_gang_of_the_wrong_size_is_made_anew() -> None:
    wanted = spec({"min": 3, "max": 3, "desired": 3}, gang="native")
    created = JobStatus(incarnations={"0": 1, "1": 1, "2": 1})
    decided = step(wanted, created, pods=(pod(0), pod(1), pod(2)))
    assert {action.uid for action in decided.actions if isinstance(action, DeletePod)} == {"u0", "u1", "u2"}
    assert [action for action in decided.actions if isinstance(action, CreatePod)] == [
        CreatePod(i, 2) for i in range(3)
    ]


@pytest.mark.parametrize(
    ("pods", "refused", "status", "reason", "says"),
    [
        ([pod(0, node="n"), pod(1, node="n")], {}, "True", "AllPlaced", "all 2 members"),
        (
            [pod(0, node="n"), pod(1, unschedulable_message="0/3 nodes")], {},
            "False", "Unschedulable", "1 of 2 members have a node; 0/3 nodes",
        ),
        (
            [pod(i, unschedulable_message="held back by scheduling gate kueue.x-k8s.io/admission") for i in (0, 1)], {},
            "False", "Queued", "queue team-a",
        ),
        ([pod(0, node="n")], {1: "exceeded quota: q"}, "False", "PodsRefused", "exceeded quota: q"),
        ([pod(0), pod(1)], {}, "False", "WaitingForScheduler", "scheduler mine has not looked"),
    ],
    ids=["placed", "no-room", "queued", "refused", "no-scheduler"],
)  # fmt: skip
def test_the_condition_says_who_keeps_members_from_a_node(pods, refused, status, reason, says) -> None:
    wanted = spec({"min": 2, "max": 2, "desired": 2}, queue="team-a", schedulerName="mine")
    found = condition(step(wanted, JobStatus(), pods=tuple(pods), refused=refused).status)
    assert (found.status, found.reason) == (status, reason)
    assert says in found.message


def test_a_refusal_stands_until_the_next_try_has_an_answer() -> None:
    """Pods are tried again every half minute; the condition does not come and go with that."""
    wanted = spec({"min": 2, "max": 2, "desired": 2})
    refused = step(wanted, JobStatus(), pods=(pod(0, node="n", group_size=0),), refused={1: "exceeded quota"}).status
    tried = step(wanted, refused, pods=(pod(0, node="n", group_size=0),))
    assert [type(action) for action in tried.actions] == [CreatePod]
    assert condition(tried.status) == condition(refused)
    there = step(wanted, tried.status, pods=(pod(0, node="n", group_size=0), pod(1, node="n", group_size=0)))
    assert condition(there.status).reason == "AllPlaced"


@pytest.mark.parametrize(
    ("scheduled", "template", "path"),
    [
        ({"schedulerName": "a"}, {"spec": {"schedulerName": "b"}}, "spec.template.spec.schedulerName"),
        ({"priorityClassName": "a"}, {"spec": {"priorityClassName": "b"}}, "spec.template.spec.priorityClassName"),
        (
            {"gang": "native"}, {"spec": {"schedulingGroup": {"podGroupName": "g"}}},
            "spec.template.spec.schedulingGroup",
        ),
        (
            {"queue": "a"}, {"metadata": {"labels": {"kueue.x-k8s.io/queue-name": "b"}}},
            "spec.template.metadata.labels.kueue.x-k8s.io/queue-name",
        ),
    ],
    ids=["scheduler", "priority", "group", "queue"],
)  # fmt: skip
def test_the_template_must_not_unsay_it(scheduled, template, path) -> None:
    assert [problem.path for problem in problems("j", spec(template=template, **scheduled))] == [path]
    assert not problems("j", spec(template=template)), "without spec.scheduling the template is free to"
