"""What the command line shows of a job, from the objects of the API server to text."""

import pytest
from rich.console import Console

from llmtrain_operator.cli import control, view
from llmtrain_operator.cli.logs import newest
from llmtrain_operator.cli.report import report
from llmtrain_operator.state import PodView
from tests.support.specs import job

NOW = 1_767_225_600.0 + 3600  # an hour after the job was created


def pod(index, incarnation=1, **changes):
    name = f"job-{index}-{incarnation}"
    usual = {
        "name": name,
        "namespace": "ns",
        "uid": f"uid-{name}",
        "job": "job",
        "index": index,
        "incarnation": incarnation,
        "phase": "Running",
        "ready": True,
        "node": "node-a",
        "deleting": False,
        "ip": "",
        "reason": "",
        "message": "",
        "exit_code": None,
        "created": "",
        "scheduled": True,
        "unschedulable_message": "",
        "owner": "uid",
    }
    return PodView(**(usual | changes))


def condition(kind, status, reason, message):
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }


RUNNING = {
    "observedGeneration": 1,
    "state": "Running",
    "nodes": "2/3",
    "restarts": 1,
    "goodput": "97.5%",
    "progress": {
        "step": 40,
        "maxSteps": 100,
        "loss": 3.25123,
        "tokensPerSecond": 12345.6,
        "eta": "3m12s",
        "phase": "training",
    },
    "round": {
        "number": 2,
        "procsPerMember": 1,
        "startedAt": "2026-01-01T00:00:00Z",
        "members": [
            {"index": i, "incarnation": 1, "pod": f"job-{i}-1", "uid": f"uid-job-{i}-1", "host": "h", "storePort": 1}
            for i in (1, 0)
        ],
    },
}
FAILURE = {
    "reason": "UserError",
    "message": "boom [in brackets]",
    "member": 1,
    "rank": 1,
    "step": 40,
    "traceback": "Traceback:\n  train.py, line 3\nboom",
}
FAILED = {
    **RUNNING,
    "state": "Failed",
    "completionTime": "2026-01-01T00:30:00Z",
    "round": None,
    "lastFailure": FAILURE,
    "conditions": [condition("Failed", "True", "UserError", "the same error twice")],
}
INVALID = {
    "observedGeneration": 1,
    "state": "Invalid",
    "conditions": [condition("Valid", "False", "InvalidSpec", "spec.data.source: is missing")],
}
EVENT = {
    "type": "Warning",
    "reason": "MemberLost",
    "message": "member 2: pod is gone",
    "count": 3,
    "lastTimestamp": "2026-01-01T00:59:00Z",
}


def seen(status=None, pods=(), events=(), **spec):
    raw = job("job", spec)
    raw["metadata"] |= {"namespace": "ns", "creationTimestamp": "2026-01-01T00:00:00Z"}
    raw["status"] = status or {}
    return report(raw, pods, events)


def text(renderable, width=200):
    console = Console(width=width, markup=False, highlight=False)
    with console.capture() as captured:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


@pytest.mark.parametrize(
    ("status", "line"),
    [
        pytest.param(None, "Unseen  step 0/100", id="no operator"),
        pytest.param(
            RUNNING,
            "Running  step 40/100  loss 3.251  12,346 tokens/s  ETA 3m12s  members 2/3  restarts 1",
            id="running",
        ),
        pytest.param(
            FAILED,
            "Failed  step 40/100  loss 3.251  12,346 tokens/s  members 2/3  restarts 1",
            id="ended: no time left",
        ),
        pytest.param(INVALID, "Invalid  step 0/100", id="invalid"),
    ],
)
def test_a_job_is_told_in_one_line(status, line):
    """For logs and pipes: only what is known, in a fixed order."""
    assert view.line(seen(status)) == line


def test_a_script_without_steps_shows_none():
    """An own script need not report steps; no made-up progress then."""
    status = {"observedGeneration": 1, "state": "Running", "nodes": "2/2"}
    each = seen(status, training=None, entrypoint={"script": "a.py"})
    assert view.line(each) == "Running  members 2/2"
    assert "step" not in text(view.page(each, NOW, bar=True))


def test_the_table_has_a_row_per_job():
    """Sorted by namespace and name, with the age in plain words."""
    lines = text(view.jobs_table([seen(RUNNING), seen()], NOW, namespaces=True)).splitlines()
    assert lines[0].split() == "NAMESPACE JOB STATE MEMBERS STEP LOSS TOKENS/S ETA GOODPUT RESTARTS AGE".split()  # noqa: SIM905
    assert lines[1].split() == "ns job Running 2/3 40/100 3.251 12,346 3m12s 97.5% 1 1h00m".split()  # noqa: SIM905
    assert text(view.jobs_table([], NOW, namespaces=False)) == "no jobs"


def test_the_page_tells_members_by_rank_and_the_last_events():
    """Who trains where, who is missing and why, and what happened when."""
    waiting = pod(2, 2, phase="Pending", node="", scheduled=False, unschedulable_message="0/3 nodes have a GPU")
    shown = text(view.page(seen(RUNNING, [pod(0), pod(1), pod(2, phase="Failed"), waiting], [EVENT]), NOW, bar=False))
    rows = [line.split(maxsplit=4) for line in shown.splitlines() if line.lstrip().startswith(("0 ", "1 ", "2 "))]
    assert [row[:4] for row in rows] == [
        ["0", "1", "job-0-1", "node-a"],
        ["1", "0", "job-1-1", "node-a"],
        ["2", "-", "job-2-2", "-"],
    ]
    assert rows[2][4] == "Unscheduled: 0/3 nodes have a GPU"
    assert "1m00s ago  MemberLost (x3)  member 2: pod is gone" in shown
    assert "step 40/100  40%  ETA 3m12s" in shown


def test_the_page_tells_spares_from_members_that_are_missing():
    """A pod beyond a round that is whole is a spare; beside one that is short it is on its way into it."""
    whole = RUNNING | {"nodes": "2/2", "targetNodes": 2, "spares": 1}
    shown = text(view.page(seen(whole, [pod(0), pod(1), pod(2)]), NOW, bar=False))
    assert "members 2/2  spares ready 1" in shown
    assert "2       spare  job-2-1" in shown
    short = text(view.page(seen(whole | {"targetNodes": 3}, [pod(0), pod(1), pod(2)]), NOW, bar=False))
    assert "2       -     job-2-1" in short


def test_incidents_are_told_by_their_timeline():
    """One that is not over says so; what was promised stands below."""
    one = {"number": 1, "time": "2026-01-01T00:30:00Z", "kind": "node", "reason": "PodLost", "member": 2, "round": 1}
    over = {**one, "message": "no word", "detectSeconds": 1.3, "roundSeconds": 1.4, "trainSeconds": 2.2, "lostSteps": 0}
    over["badput"] = {"detect": 1.3, "restart": 0.9, "recompute": 0.2}
    met = condition("ObjectivesMet", "True", "ObjectivesMet", "incident 1: noticed")
    shown = text(view.incidents_table(seen(RUNNING | {"incidents": [over, {**one, "number": 2}], "conditions": [met]})))
    row = "1 2026-01-01T00:30:00Z PodLost 2 1.3s 1.4s 2.2s 2.4s 0 no word"
    assert " ".join(shown.splitlines()[1].split()) == row
    assert shown.count("not yet") == 2
    assert "ObjectivesMet: incident 1: noticed" in shown
    assert "no round was lost" in text(view.incidents_table(seen(RUNNING)))


def test_only_terminals_get_a_bar():
    """Redirected output is plain text."""
    assert "━" in text(view.page(seen(RUNNING), NOW, bar=True))
    assert "━" not in text(view.page(seen(RUNNING), NOW, bar=False))


def test_a_failed_job_shows_the_trainers_own_words():
    """Reason, place, message and the end of the traceback, brackets and all."""
    shown = text(view.page(seen(FAILED), NOW, bar=False))
    assert "UserError: the same error twice" in shown
    assert "last failure: UserError (member 1, rank 1, step 40): boom [in brackets]" in shown
    assert "  train.py, line 3" in shown


@pytest.mark.parametrize(
    ("status", "says"),
    [
        pytest.param(INVALID, "InvalidSpec: spec.data.source: is missing", id="invalid"),
        pytest.param(None, "the operator has not looked at this job yet", id="no operator"),
        pytest.param(
            {
                "observedGeneration": 1,
                "state": "Pending",
                "conditions": [condition("Running", "False", "WaitingForMembers", "0 of at least 1 members are ready")],
            },
            "WaitingForMembers: 0 of at least 1 members are ready",
            id="waiting",
        ),
        pytest.param(
            {
                "observedGeneration": 1,
                "state": "Pending",
                "conditions": [condition("Scheduled", "False", "QueueMissing", "queue q needs Kueue")],
            },
            "QueueMissing: queue q needs Kueue",
            id="no-queue",
        ),
        pytest.param(
            RUNNING | {"conditions": [condition("Straggling", "True", "SlowMembers", "member 2 is slower")]},
            "SlowMembers: member 2 is slower",
            id="a straggler",
        ),
    ],
)
def test_the_page_says_why_nothing_trains_or_no_faster(status, says):
    """The telling condition is shown without asking for it."""
    assert text(view.page(seen(status), NOW, bar=False)).count(says) == 1


def test_what_two_conditions_say_alike_is_said_once():
    conditions = [condition(kind, "False", "Suspended", "the job is suspended") for kind in ("Scheduled", "Running")]
    status = {"observedGeneration": 1, "state": "Suspended", "conditions": conditions}
    assert text(view.page(seen(status), NOW, bar=False)).count("the job is suspended") == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "Running"),
        ({"deleting": True}, "Terminating"),
        ({"phase": "Pending", "reason": "ImagePullBackOff"}, "Pending (ImagePullBackOff)"),
        ({"phase": "Pending", "scheduled": False}, "Unscheduled"),
    ],
)
def test_a_pod_is_described_by_what_holds_it_up(changes, words):
    """The reason stands beside the phase if there is one."""
    assert view.pod_state(pod(0, **changes)) == words


def test_a_status_from_the_future_is_refused_in_plain_words():
    """An old command line says that it is old instead of showing nonsense."""
    with pytest.raises(ValueError, match=r"status\.state of job is 'Levitating'.*update it"):
        seen({"state": "Levitating"})


def test_logs_come_from_each_members_newest_pod():
    """A replaced pod's log is history."""
    pods = [pod(1, 1), pod(0, 2), pod(0, 1)]
    assert [each.name for each in newest(pods, None)] == ["job-0-2", "job-1-1"]
    assert [each.name for each in newest(pods, 1)] == ["job-1-1"]


@pytest.mark.parametrize(
    ("status", "discard", "says"),
    [
        pytest.param(RUNNING, False, "has trained 40 steps that are saved nowhere", id="progress would be lost"),
        pytest.param(RUNNING, True, None, id="with leave"),
        pytest.param(
            RUNNING | {"conditions": [condition("Protected", "True", "Snapshots", "x")]}, False, None, id="protected"
        ),
        pytest.param(INVALID, False, None, id="nothing trained yet"),
        pytest.param(FAILED, False, "job is Failed: there is nothing left", id="ended"),
    ],
)
def test_suspending_never_loses_steps_by_surprise(status, discard, says):
    """The user is asked for --discard-progress before anything is patched."""
    raw = job("job")
    raw["metadata"] |= {"namespace": "ns", "creationTimestamp": "2026-01-01T00:00:00Z"}
    refusal = control.why_not_suspend(raw | {"status": status}, discard=discard)
    assert refusal is None if says is None else says in refusal


def test_a_job_with_durable_storage_is_saved_when_it_is_suspended():
    """The operator sees to that, so the user need not be asked; a script of theirs has to have shown that it saves."""
    raw = job("job") | {"status": RUNNING}
    raw["metadata"] |= {"namespace": "ns", "creationTimestamp": "2026-01-01T00:00:00Z"}
    raw["spec"] |= {"checkpoint": {"durable": {"storage": "file:///c"}}}
    assert control.why_not_suspend(raw, discard=False) is None
    raw["spec"] |= {"entrypoint": {"script": "x.py"}}
    assert control.why_not_suspend(raw, discard=False)
