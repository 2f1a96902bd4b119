"""What the operator would do next, as its planner sees it from outside."""

from __future__ import annotations

import click
import pytest

from llmtrain_operator.cli.explain import explanation
from llmtrain_operator.cli.report import report
from llmtrain_operator.cli.scale import reached, why_in_vain, why_not_scale
from llmtrain_operator.conditions import timestamp
from llmtrain_operator.local.stored import as_stored
from llmtrain_operator.state import PodView
from tests.support.specs import job

NOW = 1_800_000_000.0
DURABLE = {"checkpoint": {"durable": {"storage": "file:///c"}}}


def pod(index, **facts):
    plain = {
        "name": f"j-{index}-1",
        "namespace": "default",
        "uid": f"uid-{index}",
        "job": "j",
        "index": index,
        "incarnation": 1,
        "phase": "Running",
        "ready": True,
        "node": "n",
        "deleting": False,
        "ip": "10.0.0.1",
        "reason": "",
        "message": "",
        "exit_code": None,
        "created": timestamp(NOW),
        "scheduled": True,
        "unschedulable_message": "",
        "owner": "uid",
    }
    return PodView(**plain | facts)


def running(members=3, **spec):
    """A job with a round that trains, as the operator would have written it."""
    given = job("j", {"nodes": {"min": 2, "max": 3, "desired": members}, **spec})
    named = [
        {"index": i, "incarnation": 1, "pod": f"j-{i}-1", "uid": f"uid-{i}", "host": "h", "storePort": 1}
        for i in range(members)
    ]
    status = {
        "observedGeneration": 1,
        "state": "Running",
        "nodes": f"{members}/{members}",
        "targetNodes": members,
        "rounds": 4,
        "incarnations": {str(i): 1 for i in range(members)},
        "round": {"number": 4, "procsPerMember": 1, "members": named, "startedAt": timestamp(NOW), "wanted": members},
        "progress": {"step": 40, "maxSteps": 100, "loss": 3.0, "phase": "training"},
        "startTime": timestamp(NOW - 60),
        "ledgerTime": timestamp(NOW),
    }
    return as_stored(given, "uid", NOW) | {"status": status}


def explained(what, pods, lose=None):
    return "\n".join(explanation(what, pods, lose, NOW + 1))


def settled(what, pods):
    """The job with the conditions that the operator would write first of all."""
    from llmtrain_operator.cli import foresight

    present = foresight.scene(what, pods, NOW)
    status = foresight.next_plan(present).status
    return what | {"status": status.model_dump(mode="json", by_alias=True, exclude_none=True)}


def test_a_job_that_trains_needs_nothing():
    """The plan is empty, and the caveat says what is not known."""
    pods = [pod(i) for i in range(3)]
    text = explained(settled(running(), pods), pods)
    assert "do nothing until something changes" in text
    assert "j is Running  step 40/100" in text
    assert "what members tell the operator is not known here" in text


def test_a_pod_that_is_gone_is_told_with_what_follows():
    """From the planner: the round ends, a pod is made, the others are told."""
    text = explained(running(), [pod(0), pod(1)])
    assert "pod j-2-1 is gone" in text
    assert "create a pod for member 2, its incarnation 2" in text
    assert "tell 2 members to wait" in text


def test_a_loss_can_be_imagined():
    """With durable storage those who are left go on at once; the pods themselves are all there."""
    pods = [pod(i) for i in range(3)]
    text = explained(settled(running(**DURABLE), pods), pods, lose=1)
    before, _, after = text.partition("If the pod of member 1 were lost now")
    assert "do nothing" in before
    assert "pod j-1-1 is gone" in after
    assert "RoundStarted: round 5 with 2 members" in after


def test_a_spare_is_known_to_stand_in():
    """The status says that one is ready; its pod is the one that runs and is in no round."""
    what = running(**DURABLE)
    what["spec"]["nodes"]["spares"] = 1
    what["status"] |= {"spares": 1, "incarnations": dict.fromkeys("0123", 1)}
    pods = [pod(i) for i in range(4)]
    text = explained(settled(what, pods), pods, lose=1)
    assert "RoundStarted: round 5 with 3 members: all 3 members are ready" in text


def test_an_unknown_member_cannot_be_lost():
    """The error names those that are there."""
    with pytest.raises(click.ClickException, match="its members: 0, 1, 2"):
        explained(running(), [pod(i) for i in range(3)], lose=7)


def test_pods_of_an_earlier_job_of_the_name_are_not_its_own():
    """They are about to be cleared away; the planner never sees them."""
    assert "pod j-0-1 is gone" in explained(running(), [pod(i, owner="another") for i in range(3)])


@pytest.mark.parametrize(
    ("members", "ended", "says"),
    [
        pytest.param(2, False, None, id="within"),
        pytest.param(1, False, "may have 2 to 3 members, and 1 are asked for: change spec.nodes.min", id="too few"),
        pytest.param(4, False, "change spec.nodes.max first", id="too many"),
        pytest.param(2, True, "nothing left to scale", id="ended"),
    ],
)
def test_scale_refuses_what_cannot_be(members, ended, says):
    """With the field to change."""
    what = running()
    if ended:
        what["status"] |= {"state": "Complete", "completionTime": timestamp(NOW)}
    refusal = why_not_scale(what, members)
    assert refusal is None if says is None else says in refusal


@pytest.mark.parametrize(
    ("suspend", "state", "says"),
    [
        pytest.param(True, "Suspended", "`llmtrain resume j` first", id="suspended"),
        pytest.param(False, "Invalid", "`llmtrain status j` says what to change", id="invalid"),
        pytest.param(False, "Resizing", None, id="on its way"),
    ],
)
def test_nobody_waits_for_what_cannot_come(suspend, state, says):
    """A script would hang without a word."""
    what = running()
    what["spec"]["suspend"] = suspend
    what["status"]["state"] = state
    obstacle = why_in_vain(report(what))
    assert obstacle is None if says is None else says in obstacle


def test_a_size_is_reached_when_so_many_train():
    """Neither the wish alone nor a round on its way to another size."""
    assert reached(report(running(2)), 2)
    assert not reached(report(running(2)), 3)
    wished = running(2)
    wished["status"]["targetNodes"] = 3
    assert not reached(report(wished), 2)
