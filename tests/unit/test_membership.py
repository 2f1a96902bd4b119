"""Who is in a round: losses, candidates, formation."""

from __future__ import annotations

import dataclasses

import pytest

from llmtrain_operator import membership
from llmtrain_operator.contract.wire import AgentState, Failure, Member, Report, Round
from llmtrain_operator.state import AgentView, PodView

POD = PodView(
    name="j-0-1", namespace="d", uid="u0", job="j", index=0, incarnation=1, phase="Running", ready=True, node="n1",
    deleting=False, ip="10.0.0.1", reason="", message="", exit_code=None, created="", scheduled=True,
    unschedulable_message="", owner="job-uid",
)  # fmt: skip
MEMBER = Member(0, 1, "j-0-1", "u0", "10.0.0.1", 4000)
ROUND = Round(3, (MEMBER,), 1)


def agent(state: AgentState = "running", number: int = 3, port: int = 0, **view) -> AgentView:
    """An agent's view with one report."""
    report = Report("d/j", "j-0-1", "u0", 0, 1, "10.0.0.1", state, number, port, failure=view.pop("failure", None))
    return AgentView("u0", **({"connected": True, "silent_for": 0.0, "detail": ""} | view), report=report)


@pytest.mark.parametrize(
    ("pod", "known", "lost"),
    [
        pytest.param(POD, agent(), None, id="running-is-intact"),
        pytest.param(POD, None, None, id="an-agent-not-heard-of-yet-is-intact"),
        pytest.param(POD, agent(number=2, state="joining"), None, id="still-on-its-way-from-an-older-round"),
        pytest.param(POD, agent(connected=False, silent_for=2.0), None, id="a-short-silence-is-intact"),
        pytest.param(POD, agent(connected=False, silent_for=30.0, detail="closed"), "no word from", id="silent"),
        pytest.param(POD, agent(connected=False, silent_for=0.1, missed=True), "no word from", id="its-round-waits"),
        pytest.param(None, agent(), "is gone", id="pod-gone"),
        pytest.param(dataclasses.replace(POD, deleting=True), agent(), "being deleted", id="pod-deleting"),
        pytest.param(dataclasses.replace(POD, phase="Failed", reason="Evicted"), agent(), "Evicted", id="pod-failed"),
        pytest.param(POD, agent("joining", failure=Failure("UserError", "x", 3)), "workers of", id="workers-failed"),
    ],
)
def test_a_member_is_lost_only_on_evidence(pod, known, lost) -> None:
    """A member leaves its round by a fact about its pod, its agent's word, or long silence; by nothing else."""
    found = membership.losses(ROUND, {"u0": pod} if pod else {}, {"u0": known} if known else {})
    assert [lost in loss.detail for loss in found] == ([True] if lost else [])


@pytest.mark.parametrize(
    ("silence", "message", "lost"),
    [
        pytest.param(0.5, "[gloo] Connection closed by peer", False, id="it-may-be-dialling-again"),
        pytest.param(0.7, "[gloo] Connection closed by peer", True, id="both-say-so"),
        pytest.param(0.7, "ValueError", False, id="another-ended-for-a-reason-of-its-own"),
        pytest.param(0.7, "", False, id="the-others-train-on"),
    ],
)
def test_a_short_absence_is_a_loss_where_another_has_lost_its_peer(silence, message, lost) -> None:
    """Two witnesses that do not know of each other: the connection to the coordinator, and that between workers."""
    other = Member(1, 1, "j-1-1", "u1", "10.0.0.2", 4000)
    ended = Failure("UserError", message, 3) if message else None
    report = Report("d/j", "j-1-1", "u1", 1, 1, "10.0.0.2", "failed" if message else "running", 3, failure=ended)
    agents = {
        "u0": agent(connected=False, silent_for=silence),
        "u1": AgentView("u1", connected=True, silent_for=0.0, detail="", report=report),
    }
    pods = {"u0": POD, "u1": dataclasses.replace(POD, uid="u1", name="j-1-1", index=1)}
    found = membership.losses(Round(3, (MEMBER, other), 1), pods, agents)
    assert any(not loss.failed for loss in found) == lost


def test_a_success_in_another_round_does_not_count() -> None:
    """Only success in the current round completes it, or a pod that ended well by itself."""
    assert membership.succeeded(ROUND, {"u0": POD}, {"u0": agent("succeeded")})
    assert not membership.succeeded(ROUND, {"u0": POD}, {"u0": agent("succeeded", number=2)})
    assert membership.succeeded(ROUND, {"u0": dataclasses.replace(POD, phase="Succeeded")}, {})


def test_candidates_offer_an_unused_store() -> None:
    """A disconnected agent, one without a store, or one in a newer round cannot be named."""
    for known, named in [
        (agent("joining", port=5000), True),
        (agent("running", port=5000), True),
        (agent("running"), False),
        (agent("joining", port=5000, connected=False), False),
        (agent("joining", number=9, port=5000), False),
    ]:
        ready = membership.candidates((POD,), {"u0": known}, 3)
        assert ready == ((dataclasses.replace(MEMBER, store_port=5000),) if named else ())


MEMBERS = tuple(Member(i, 1, f"j-{i}-1", f"u{i}", "h", 1) for i in range(4))


@pytest.mark.parametrize(
    ("ready", "waited", "patience", "size"),
    [
        pytest.param(4, 0.0, 60.0, 4, id="all-there-goes-at-once"),
        pytest.param(3, 5.0, 60.0, None, id="waits-for-the-last"),
        pytest.param(3, 61.0, 60.0, 3, id="goes-without-it-in-the-end"),
        pytest.param(3, 0.0, 0.0, 3, id="at-once-where-the-last-can-be-added-later"),
        pytest.param(1, 1e6, 0.0, None, id="never-below-the-minimum"),
    ],
)
def test_formation(ready, waited, patience, size) -> None:
    """A round starts with all members, or after a fair wait with at least the minimum."""
    missing = dict.fromkeys(range(ready, 4), "not scheduled")
    formed = membership.form(MEMBERS[:ready], 4, 2, missing, waited, patience)
    assert (len(formed.members) if formed.members else None) == size
    assert formed.reason
    assert (formed.look_again is not None) == (size is None and ready >= 2)


@pytest.mark.parametrize(
    ("pod", "known", "soon"),
    [
        pytest.param(POD, agent("failed", port=5000), True, id="its-worker-was-killed"),
        pytest.param(POD, agent("running", port=5000), True, id="has-yet-to-leave-the-lost-round"),
        pytest.param(POD, agent(port=5000, connected=False, silent_for=1.0), False, id="away"),
        pytest.param(POD, None, True, id="the-coordinator-has-just-begun-to-listen"),
        pytest.param(POD, AgentView("u0", False, 2.0, "never connected"), False, id="its-agent-starts"),
        pytest.param(POD, agent("joining"), False, id="its-imports-take-their-time"),
        pytest.param(POD, agent("stopped", port=5000), False, id="about-to-end"),
        pytest.param(dataclasses.replace(POD, phase="Pending"), None, False, id="pulls-its-image-maybe"),
        pytest.param(dataclasses.replace(POD, deleting=True), agent("failed"), False, id="being-deleted"),
        pytest.param(None, None, False, id="no-pod"),
    ],
)
def test_who_is_worth_a_few_seconds(pod, known, soon) -> None:
    """A member that merely has to restart its workers is waited for; a pod that has to be started is not."""
    assert membership.returning(pod, known) == soon


@pytest.mark.parametrize(
    ("known", "gone"),
    [
        pytest.param(agent("joining"), True, id="left-as-asked"),
        pytest.param(agent("stopped"), True, id="left-and-ends-with-its-pod"),
        pytest.param(agent("running"), False, id="still-saving"),
        pytest.param(agent("joining", number=2), False, id="never-was-in-the-round"),
        pytest.param(agent("joining", failure=Failure("UserError", "x", 3)), False, id="failed-in-it"),
        pytest.param(agent("joining", failure=Failure("UserError", "x", 2)), True, id="failed-before-it"),
        pytest.param(None, False, id="not-heard-of"),
    ],
)
def test_leaving_is_not_failing(known, gone) -> None:
    """A member has left its round when it is ready for another and nothing went wrong in this one."""
    assert membership.left(ROUND, {"u0": known} if known else {}) == ({"u0"} if gone else set())
