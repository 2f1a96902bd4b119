"""The planner's decisions, one at a time."""

from __future__ import annotations

import dataclasses

import pytest

from llmtrain_operator.api import JobStatus
from llmtrain_operator.api.validation import Problem
from llmtrain_operator.conditions import find, timestamp
from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Failure, Progress
from llmtrain_operator.state import AgentView, CreatePod, DeleteJob, DeletePod, Observed
from tests.support.planner import JOB, NOW, agent, condition, observed, pod, step


@pytest.fixture
def running() -> JobStatus:
    """The status of a job in round 1 at step 10."""
    created = JobStatus(incarnations={"0": 1, "1": 1})
    formed = step(created, observed(agent(0), agent(1))).status
    progress = Progress(rank=0, round=1, step=10, max_steps=100, loss=2.5, step_seconds=0.5)
    members = (agent(0, "running", 1, progress=progress), agent(1, "running", 1))
    return step(formed, observed(*members), now=NOW + 1).status


def test_a_new_job_gets_its_pods() -> None:
    """One pod per wanted index, counted in the status before they are created."""
    decided = step(JobStatus(), observed(pods=()))
    assert [a for a in decided.actions if isinstance(a, CreatePod)] == [CreatePod(0, 1), CreatePod(1, 1)]
    assert decided.status.incarnations == {"0": 1, "1": 1}
    assert (decided.status.state, condition(decided.status, "Running")) == ("Pending", ("False", "WaitingForMembers"))


def test_a_round_starts_when_all_members_have_joined(running) -> None:
    """The round names the members in order of index and every agent is told to run it."""
    decided = step(JobStatus(), observed(agent(1), agent(0)))
    assert decided.status.round is not None
    assert [member.index for member in decided.status.round.members] == [0, 1]
    assert {uid: d.action for uid, d in decided.directives.items()} == {"u0": "run", "u1": "run"}
    assert (running.state, running.nodes, running.progress.step) == ("Running", "2/2", 10)
    assert running.progress.eta == "45s"


def test_a_lost_pod_is_replaced_and_survivors_wait(running) -> None:
    """The survivor leaves its round, the replacement has a new name, and the loss costs none of the user's budget."""
    decided = step(running, observed(agent(0, "running", 1), pods=[pod(0)]), now=NOW + 2)
    assert decided.actions == (CreatePod(1, 2),)
    assert decided.directives["u0"].action == "wait"
    assert (decided.status.restarts, decided.status.failures_counted) == (1, 0)
    assert decided.status.state == "Recovering"
    assert [event.reason for event in decided.events] == ["MemberLost"]


def test_a_killed_worker_restarts_in_the_next_round(running) -> None:
    """Pods stay, the failure is told in the trainer's words, and only the newest round counts afterwards."""
    failure = Failure(names.REASON_KILLED, "signal 9", 1, rank=1, step=10, signal=9)
    lost = step(running, observed(agent(0, "running", 1), agent(1, failure=failure, number=1)), now=NOW + 2)
    assert not any(isinstance(action, DeletePod | CreatePod) for action in lost.actions)
    assert lost.status.last_failure.signal == 9
    both = observed(agent(0, number=1), agent(1, failure=failure, number=1))
    again = step(lost.status, both, now=NOW + 3)
    assert again.status.round.number == 2
    assert again.status.progress is None, "an old round's progress is not shown as the new one's"


@pytest.mark.parametrize("reason", sorted(names.PERMANENT_REASONS))
def test_a_permanent_error_fails_the_job(running, reason) -> None:
    """What a restart cannot cure ends the job with the trainer's own words."""
    failure = Failure(reason, "the trainer says why", 1, rank=0, step=11, traceback="Traceback ...")
    decided = step(running, observed(agent(0, number=1, failure=failure), agent(1, "running", 1)), now=NOW + 2)
    assert decided.status.state == "Failed"
    assert decided.status.last_failure.traceback == "Traceback ..."
    assert "the trainer says why" in find(decided.status.conditions, "Failed").message
    assert {d.action for d in decided.directives.values()} == {"stop"}


def test_a_finished_job_stays_finished(running) -> None:
    """All members succeeded: complete, whatever happens to the pods afterwards."""
    done = step(running, observed(agent(0, "succeeded", 1), agent(1, "succeeded", 1)), now=NOW + 60)
    assert done.status.state == "Complete"
    after = step(done.status, observed(pods=[pod(0, phase="Failed")]), now=NOW + 70)
    assert (after.actions, after.status.state) == ((), "Complete")


def test_time_to_live(running) -> None:
    """The finished job is deleted when its time to live is over, not before, and asks to be looked at then."""
    done = step(running, observed(agent(0, "succeeded", 1), agent(1, "succeeded", 1)), now=NOW).status
    ended = observed(pods=[pod(0, phase="Succeeded"), pod(1, phase="Succeeded")])
    early = step(done, ended, now=NOW + 5, ttlSecondsAfterFinished=30)
    assert (early.actions, early.look_again) == ((), 25)
    assert step(done, ended, now=NOW + 31, ttlSecondsAfterFinished=30).actions == (DeleteJob(),)


def test_suspend_does_not_silently_discard_training(running) -> None:
    """Without a way to save, suspending a job that has trained needs the user's word."""
    members = observed(agent(0, "running", 1), agent(1, "running", 1))
    refused = step(running, members, now=NOW + 2, suspend=True)
    assert refused.status.state == "Running"
    assert condition(refused.status, "Suspended") == ("False", "ProgressWouldBeLost")
    willing = dataclasses.replace(JOB, annotations={names.ANNOTATION_DISCARD_PROGRESS: "true"})
    done = step(running, members, job=willing, now=NOW + 2, suspend=True)
    assert (done.status.state, len(done.actions)) == ("Suspended", 2)
    resumed = step(done.status, observed(pods=()), now=NOW + 9)
    assert [type(action) for action in resumed.actions] == [CreatePod, CreatePod]
    assert resumed.status.incarnations == {"0": 2, "1": 2}


def test_an_invalid_spec_creates_nothing_and_can_be_mended() -> None:
    """The condition names the field, the value and the remedy; a mended spec goes on."""
    problem = Problem("spec.deepspeed.config.zero", 1, "unknown key", "Did you mean zero_optimization?")
    bad = step(JobStatus(), observed(pods=()), problems=(problem,))
    assert (bad.actions, bad.status.state) == ((), "Invalid")
    assert (
        "spec.deepspeed.config.zero: unknown key (is 1). Did you mean" in find(bad.status.conditions, "Valid").message
    )
    assert not step(bad.status, observed(pods=()), problems=(problem,)).events, "told once"
    assert step(bad.status, observed(pods=())).actions


def test_scaling_waits_for_the_next_round(running) -> None:
    """A resize without checkpoints would begin again at step 0, so what runs goes on and the condition says so."""
    members = observed(agent(0, "running", 1), agent(1, "running", 1))
    decided = step(running, members, now=NOW + 2, nodes={"min": 1, "max": 2, "desired": 1})
    assert decided.status.round is not None
    assert condition(decided.status, "Resizing") == ("True", "AtNextRound")
    assert not decided.actions


def test_a_silent_agent_is_judged_in_time(running) -> None:
    """Silence is not a loss yet, but the pass that will judge it is asked for."""
    members = observed(agent(0, "running", 1), agent(1, "running", 1))
    quiet = {**members.agents, "u1": dataclasses.replace(members.agents["u1"], connected=False, silent_for=1.0)}
    decided = step(running, dataclasses.replace(members, agents=quiet), now=NOW + 2)
    assert decided.status.round is not None
    assert decided.look_again == pytest.approx(1.6)


def test_a_refused_pod_is_not_created_over_and_over() -> None:
    """What the API server refused shows as the reason to wait, and its incarnation is not used up."""
    seen = dataclasses.replace(observed(agent(0), pods=[pod(0)]), refused={1: "exceeded quota"})
    decided = step(JobStatus(), seen)
    assert not decided.actions
    assert "exceeded quota" in find(decided.status.conditions, "Running").message
    assert decided.status.incarnations == {}


def test_the_ledger_adds_up_to_wall_time(running) -> None:
    """Every second is booked once, restarts show as such, and the sum is the time since the start."""
    members = observed(agent(0, "running", 1), agent(1, "running", 1))
    status = step(running, members, now=NOW + 11).status
    failure = Failure(names.REASON_KILLED, "signal 9", 1, rank=1, signal=9)
    status = step(status, observed(agent(0, "running", 1), agent(1, number=1, failure=failure)), now=NOW + 12).status
    status = step(status, observed(agent(0, number=1), agent(1, number=1)), now=NOW + 13).status
    status = step(status, observed(agent(0, "running", 2), agent(1, "running", 2)), now=NOW + 15).status
    for second, at in ((16, 4), (17, 9), (18, 12), (19, 14)):
        progress = Progress(rank=0, round=2, step=at, max_steps=100)
        members = observed(agent(0, "running", 2, progress=progress), agent(1, "running", 2))
        status = step(status, members, now=NOW + second).status
    assert sum(status.ledger.values()) == pytest.approx(19)
    booked = {cause: pytest.approx(seconds) for cause, seconds in status.ledger.items() if seconds}
    assert booked == {"starting": 1, "productive": 1.5, "detect": 10.5, "restart": 4, "recompute": 2}


def test_pods_that_end_before_they_join_are_not_replaced_in_a_hot_loop() -> None:
    """The first replacement comes at once, later ones ever more slowly, and the job fails when the budget is spent."""

    def broken(uid: str = "u0") -> Observed:
        failed = {"phase": "Failed", "reason": "StartError", "message": "no such file", "exit_code": 128}
        return observed(pods=[pod(0, uid=uid, **failed)])

    status, now, pauses = JobStatus(), NOW, []
    while not status.completion_time:
        decided = step(status, broken(f"u{len(pauses)}"), now=now, nodes={"min": 1}, recovery={"maxRestarts": 3})
        status = decided.status
        pauses.append(decided.look_again)
        now += 100
    assert pauses[:3] == [None, 2.0, 4.0]
    failed = find(status.conditions, "Failed")
    assert (failed.reason, "no such file" in failed.message) == ("PodsFailing", True)
    first = step(JobStatus(), broken(), nodes={"min": 1, "desired": 1}).actions
    assert [type(action) for action in first] == [DeletePod, CreatePod]


def test_a_pod_that_ended_is_judged_once_however_long_it_stays(running) -> None:
    """It may take many passes to delete it: the API server is away, the leader dies, a webhook says no."""
    dead = [pod(0), pod(1, phase="Failed", reason="Error", exit_code=1)]
    seen = observed(agent(0, "running", 1), pods=dead)
    lost = step(running, seen, now=NOW + 2, recovery={"maxRestarts": 0})
    assert (lost.status.state, lost.status.ended_pods) == ("Recovering", ("u1",))
    status = lost.status
    for second in range(3, 20):
        again = step(status, seen, now=NOW + second, recovery={"maxRestarts": 0})
        assert [type(action) for action in again.actions if isinstance(action, DeletePod)] == [DeletePod]
        assert not {event.reason for event in again.events} & {"PodFailed", "MemberLost"}
        status = again.status
    assert (status.state, status.pod_failures) == ("Recovering", 0)
    assert (status.last_failure, status.create_after) == (lost.status.last_failure, lost.status.create_after)
    gone = step(status, observed(agent(0, "running", 1), pods=dead[:1]), now=NOW + 20)
    assert gone.status.ended_pods == ()


def test_a_pod_that_never_joined_is_counted_once_too(running) -> None:
    """And the next one of that index again."""
    early = [pod(0, phase="Failed", reason="Error", exit_code=1), pod(1)]
    status = JobStatus()
    for second in range(3):
        status = step(status, observed(pods=early), now=NOW + second).status
    assert (status.pod_failures, status.ended_pods) == (1, ("u0",))
    status = step(status, observed(pods=[pod(0, uid="u9", phase="Failed", reason="Error"), pod(1)]), now=NOW + 9).status
    assert (status.pod_failures, status.ended_pods) == (2, ("u9",))


def test_a_pause_is_booked_as_such_however_late_the_next_pass(running) -> None:
    """Time is booked when something changes, so the end of a pause lies within the time that is booked."""
    paused = running.model_copy(update={"round": None, "not_before": timestamp(NOW + 31)})
    status = step(paused, observed(), now=NOW + 41).status
    assert {cause: round(s) for cause, s in status.ledger.items() if s} == {"starting": 11, "backoff": 30}


@pytest.mark.parametrize("pace", [float("inf"), float("nan")])
def test_odd_figures_do_not_stop_a_job(running, pace) -> None:
    """A script of the user's own may report anything; what has no meaning is left out."""
    progress = Progress(rank=0, round=1, step=20, max_steps=100, loss=pace, step_seconds=pace, learning_rate=pace)
    members = observed(agent(0, "running", 1, progress=progress), agent(1, "running", 1))
    shown = step(running, members, now=NOW + 2).status.progress
    assert (shown.step, shown.eta, shown.loss, shown.learning_rate) == (20, None, None, None)


def failed(index: int, message: str, *, reason=names.REASON_USER_ERROR, rank: int | None = None, **fields) -> AgentView:
    """An agent whose workers have just failed in round 1."""
    told = Failure(reason, message, 1, rank=index if rank is None else rank, step=10)
    return dataclasses.replace(agent(index, number=1, failure=told), **({"failed_for": 0.1} | fields))


def test_a_cause_that_is_told_after_its_consequences_is_the_one_that_counts(running) -> None:
    """A broken connection is not judged until those who have not spoken had a moment to."""
    broken = failed(0, "[gloo] Connection closed by peer")
    first = step(running, observed(broken, agent(1, "running", 1)), now=NOW + 2)
    assert (first.status.round is not None, first.directives["u1"].action) == (True, "run")
    assert first.look_again == pytest.approx(1.9)
    cause = failed(1, "the loss is nan", reason=names.REASON_NON_FINITE_LOSS)
    assert step(first.status, observed(broken, cause), now=NOW + 3).status.state == "Failed"
    late = dataclasses.replace(broken, failed_for=2.1)
    assert step(first.status, observed(late, agent(1, "running", 1)), now=NOW + 4).status.round is None


def test_a_member_that_falls_silent_explains_the_broken_connections(running) -> None:
    """Its connections broke before its silence was certain; it is the one to be blamed."""
    broken = dataclasses.replace(failed(0, "[gloo] Connection closed by peer"), failed_for=0.4)
    quiet = dataclasses.replace(agent(1, "running", 1), connected=False, silent_for=0.4)
    waits = step(running, observed(broken, quiet), now=NOW + 2)
    assert (waits.status.round is not None, waits.look_again) == (True, pytest.approx(0.3))
    certain = step(running, observed(broken, dataclasses.replace(quiet, silent_for=0.7)), now=NOW + 3).status
    assert (certain.last_failure.reason, certain.last_failure.member) == (names.REASON_POD_LOST, 1)


def test_a_failure_is_told_of_the_member_that_reported_it(running) -> None:
    """Whatever rank it claims: torchrun's own agent does not always know it."""
    seen = observed(agent(0, "running", 1), failed(1, "ValueError", rank=99))
    assert step(running, seen, now=NOW + 2).status.last_failure.member == 1


def test_a_pod_that_needs_too_much_memory_uses_up_the_budget(running) -> None:
    """Its replacement would do the same, for ever."""
    killed = pod(1, phase="Failed", reason="OOMKilled", message="exit code 137", exit_code=137)
    lost = step(running, observed(agent(0, "running", 1), pods=[pod(0), killed]), now=NOW + 2).status
    assert (lost.failures_counted, lost.last_failure.member, "memory" in lost.last_failure.message) == (1, 1, True)


def test_a_member_that_has_succeeded_may_go(running) -> None:
    """Its pod is neither missed nor replaced while the others finish, and it counts as done without it."""
    done = step(running, observed(agent(0, "running", 1), agent(1, "succeeded", 1)), now=NOW + 2).status
    alone = step(done, observed(agent(0, "running", 1), pods=[pod(0)]), now=NOW + 3)
    assert (alone.status.round.number, alone.actions) == (1, ())
    assert step(alone.status, observed(agent(0, "succeeded", 1), pods=[pod(0)]), now=NOW + 4).status.state == "Complete"


def test_what_runs_goes_on_under_a_spec_that_became_invalid(running) -> None:
    """A newer operator may judge more strictly: the round is followed to its end, but no other is formed. In state
    Invalid the API server lets every field be edited, so no pod that goes by the old ones may be there by then."""
    problem = (Problem("spec.x", 1, "it is wrong", "Mend it"),)
    fine = observed(agent(0, "running", 1), agent(1, "running", 1))
    still = step(running, fine, now=NOW + 2, problems=problem)
    assert (still.status.state, condition(still.status, "Valid")[0]) == ("Running", "False")
    assert {d.action for d in still.directives.values()} == {"run"}
    dying = dataclasses.replace(fine.agents["u1"], connected=False, silent_for=1.0, detail="no heartbeat")
    silent = dataclasses.replace(fine, agents={**fine.agents, "u1": dying})
    assert step(still.status, silent, now=NOW + 2, problems=problem).look_again == pytest.approx(1.6)
    ended = observed(agent(0, "succeeded", 1), agent(1, "succeeded", 1))
    assert step(still.status, ended, now=NOW + 3, problems=problem).status.state == "Complete"
    lost = step(still.status, observed(agent(0, "running", 1), pods=[pod(0)]), now=NOW + 3, problems=problem)
    assert (lost.status.state, lost.status.round) == ("Recovering", None)
    assert [action.name for action in lost.actions] == ["j-0-1"]
    leaving = observed(agent(0, number=1), pods=[pod(0, deleting=True)])
    left = step(lost.status, leaving, now=NOW + 4, problems=problem)
    assert (left.status.state, left.directives["u0"].action, left.events) == ("Invalid", "stop", ())
    gone = step(running, fine, now=NOW + 3, problems=problem, suspend=True, entrypoint={"script": "x"})
    assert gone.status.state == "Running", "it has trained, and nobody said that this may be lost"
    allowed = dataclasses.replace(JOB, annotations={names.ANNOTATION_DISCARD_PROGRESS: "true"})
    stopped = step(running, fine, now=NOW + 3, problems=problem, suspend=True, job=allowed)
    assert {type(action) for action in stopped.actions} == {DeletePod}


def test_hundreds_of_waiting_members_fit_into_a_status() -> None:
    """The API server refuses a status whole if one message is too long."""
    many = [pod(i, phase="Pending", scheduled=False, unschedulable_message=f"{i % 9}" * 900) for i in range(400)]
    decided = step(JobStatus(), observed(pods=many), nodes={"min": 400, "desired": 400, "max": 400})
    message = find(decided.status.conditions, "Running").message
    assert len(message) <= 4096
    assert message.startswith(
        "0 of at least 400 members are ready (members 0, 9, 18, 27, 36 and 40 more: not scheduled"
    )


def test_a_member_on_a_dead_node_is_replaced_before_kubernetes_gives_it_up(running) -> None:
    """Its pod looks alive for minutes; its agent's silence is evidence enough to start a new one."""
    members = observed(agent(0, "running", 1), agent(1, "running", 1))
    dead = dataclasses.replace(members.agents["u1"], connected=False, silent_for=12.0, detail="no heartbeat")
    seen = dataclasses.replace(members, agents={**members.agents, "u1": dead})
    decided = step(running, seen, now=NOW + 20)
    assert [(type(a), getattr(a, "index", a.name if isinstance(a, DeletePod) else 0)) for a in decided.actions] == [
        (DeletePod, "j-1-1"),
        (CreatePod, 1),
    ]
    assert decided.status.incarnations["1"] == 2
    assert decided.status.last_failure.reason == names.REASON_POD_LOST


def test_a_pod_whose_agent_never_came_is_waited_for() -> None:
    """It may be slow to start, but not for ever: it may be stuck, on a node that is fine."""
    never = AgentView("u1", False, 100.0, "never connected to this coordinator")
    decided = step(JobStatus(incarnations={"0": 1, "1": 1}), observed(agent(0), never))
    assert (decided.actions, decided.look_again) == ((), pytest.approx(20.1))
    stuck = dataclasses.replace(never, silent_for=121.0)
    decided = step(JobStatus(incarnations={"0": 1, "1": 1}), observed(agent(0), stuck))
    assert [type(action) for action in decided.actions] == [DeletePod, CreatePod]


def test_a_silent_agent_that_is_in_no_round_is_replaced() -> None:
    """Its node may be fine: nobody else would do it. Not before it had time to come back, though."""
    for seconds, replaced in ((9.0, []), (11.0, [DeletePod, CreatePod])):
        hung = dataclasses.replace(agent(1), connected=False, silent_for=seconds, detail="no heartbeat")
        decided = step(JobStatus(incarnations={"0": 1, "1": 1}), observed(agent(0), hung))
        assert [type(action) for action in decided.actions] == replaced
        # It hears no SIGTERM, and its successor may need its place.
        assert all(action.grace == 1 for action in decided.actions if isinstance(action, DeletePod))
        assert "member 1: its agent is silent" in find(decided.status.conditions, "Running").message or replaced
