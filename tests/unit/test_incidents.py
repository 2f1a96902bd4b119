"""What a lost round cost: the timeline in the status, in words, and against the objectives."""

from __future__ import annotations

import dataclasses

import pytest

from llmtrain_operator import incidents, quantity
from llmtrain_operator.api import IncidentStatus, Objectives
from llmtrain_operator.conditions import find, seconds
from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Checkpoints, Failure, Flash, Progress
from tests.support.elastic import Job, gone, missed, training
from tests.support.planner import agent

OBJECTIVES = {"objectives": {"process": "2s", "node": "5s", "lostSteps": 0}}


def restored(index, number, step):
    """An agent whose workers have taken a step in a round that began at `step`."""
    said = Checkpoints(step=30, restored_step=step, restored_from="the members' memory")
    return training(index, number, at=step + 1, checkpoints=said)


def loading(index, number):
    progress = Progress(index, number, phase="loading")
    return agent(index, "running", number, store_port=5000, progress=progress)


def with_copies(index):
    return training(index, flash=Flash(step=40, committed=39, copies=1))


def test_a_node_that_goes_off_is_told_from_the_fault_to_the_next_step() -> None:
    """The fault is dated by the last heartbeat; the committed step is that of the copies in memory."""
    job = Job(with_copies, recovery=OBJECTIVES)
    lost = dataclasses.replace(missed(training(1)), quiet=1.3)
    job.look(training(0), lost, training(2))
    [begun] = job.status.incidents
    assert (begun.number, begun.kind, begun.reason, begun.member, begun.round) == (1, "node", "PodLost", 1, 1)
    assert job.now - seconds(begun.time) == pytest.approx(1.3, abs=0.002)
    assert (begun.detect_seconds, begun.round_seconds, begun.train_seconds) == (1.3, pytest.approx(1.3, abs=0.01), None)
    job.look(loading(0, 2), lost, loading(2, 2), after=0.5)
    assert job.status.incidents[0].train_seconds is None
    job.look(restored(0, 2, 39), lost, restored(2, 2, 39), after=0.5)
    [over] = job.status.incidents
    assert (over.train_seconds, over.lost_steps, over.committed_step) == (pytest.approx(2.3, abs=0.01), 0, 39)
    assert "Recovered" in job.events
    condition = find(job.status.conditions, "ObjectivesMet")
    assert (condition.status, condition.reason) == ("True", "ObjectivesMet")
    assert "training again after 2.3 s, 0 committed steps lost" in condition.message
    job.look(restored(0, 2, 45), lost, restored(2, 2, 45), after=30)
    assert job.status.incidents == (over,)


def test_a_broken_promise_is_told_with_the_figures() -> None:
    """As a condition and as an event, by kind of incident."""
    job = Job(with_copies, recovery=OBJECTIVES)
    ended = Failure(names.REASON_KILLED, "signal 9", 1, rank=1, step=40, signal=9)
    failed = agent(1, "failed", 1, store_port=5001, failure=ended)
    job.look(training(0), dataclasses.replace(failed, failed_for=0.2), training(2))
    assert (job.status.incidents[0].kind, job.status.incidents[0].detect_seconds) == ("process", 0.2)
    job.look(*map(gone, range(3)))
    assert job.status.round.number == 2
    job.look(*[restored(index, 2, 30) for index in range(3)], after=7)
    condition = find(job.status.conditions, "ObjectivesMet")
    assert (condition.status, condition.reason) == ("False", "ObjectivesMissed")
    assert "s without training (process: 2s); 9 committed steps lost (lostSteps: 0)" in condition.message
    assert "ObjectivesMissed" in job.events


def test_a_hang_is_dated_by_its_beginning() -> None:
    """Not by the moment when it was noticed: until then nothing was trained either."""
    job = Job(with_copies, recovery=OBJECTIVES)
    hung = Failure(names.REASON_HANG, "was stopped", 1, rank=1, step=40, lasted=0.8)
    job.look(training(0), dataclasses.replace(agent(1, "failed", 1, failure=hung), failed_for=0.1), training(2))
    assert job.status.incidents[0].detect_seconds == pytest.approx(0.9)


def fault(number):
    return incidents.Fault(number, "PodLost", "gone", 1, ago=1.0, committed=10)


def test_what_is_lost_on_the_way_belongs_to_the_incident() -> None:
    """Two nodes one after the other: one incident from the first fault to the next step."""
    found = incidents.begun((), fault(1), 100.0)
    found = incidents.round_formed(found, 100.5)
    found = incidents.begun(found, fault(2), 101.0)
    assert [(each.number, each.faults, each.round_seconds) for each in found] == [(1, 2, None)]
    found = incidents.trains(incidents.round_formed(found, 102.0), 8, 103.0)
    assert (found[0].round_seconds, found[0].train_seconds, found[0].lost_steps) == (3.0, 4.0, 2)
    assert "2 faults" in incidents.told(found[0])
    assert incidents.trains(found, 8, 200.0) == found


def test_ten_incidents_are_kept_and_counting_goes_on() -> None:
    """The status does not grow with a job's bad luck."""
    found: incidents.Incidents = ()
    for number in range(1, 13):
        found = incidents.trains(incidents.begun(found, fault(number), 100.0 * number), None, 100.0 * number + 1)
    assert [each.number for each in found] == list(range(3, 13))
    assert found[-1].lost_steps is None
    assert "lost steps unknown" in incidents.told(found[-1])


@pytest.mark.parametrize(
    ("kind", "took", "lost", "broken"),
    [
        ("node", 4.9, 0, 0),
        ("node", 5.1, 0, 1),
        ("process", 2.1, 0, 1),
        ("process", 1.9, 3, 1),
        ("node", 6.0, 3, 2),
        ("node", 1.0, None, 0),
    ],
)
def test_objectives(kind, took, lost, broken) -> None:
    """Each kind of incident has its own time."""
    one = IncidentStatus(
        number=1,
        time="2026-11-29T00:00:00Z",
        kind=kind,
        reason="x",
        round=1,
        train_seconds=took,
        lost_steps=lost,
        outcome="Recovered",
    )
    assert len(incidents.broken(one, Objectives(process="2s", node="5s", lost_steps=0))) == broken
    assert incidents.broken(one, Objectives()) == []


@pytest.mark.parametrize(("text", "length"), [("2s", 2.0), ("1m30s", 90.0), ("500ms", 0.5), ("1.5h", 5400.0)])
def test_durations(text, length) -> None:
    """In the form that the schema admits."""
    assert quantity.seconds(text) == pytest.approx(length)


def lost_one(**fields):
    """A job of which a member was just lost."""
    job = Job(with_copies, recovery=OBJECTIVES, **fields)
    job.look(training(0), missed(training(1)), training(2))
    assert job.status.incidents[-1].outcome == ""
    return job


def test_the_time_of_a_suspension_is_no_recovery() -> None:
    """The incident is over when the job is held, and nothing is judged."""
    job = lost_one()
    job.fields["suspend"] = True
    job.look(*[gone(index, 2) for index in (0, 2)])
    job.look(*[gone(index, 2) for index in (0, 2)])
    assert (job.status.state, job.status.incidents[-1].outcome) == ("Suspended", "Suspended")
    assert find(job.status.conditions, "ObjectivesMet") is None


@pytest.mark.parametrize(
    ("tiers", "farthest"),
    [
        (("memory", "memory"), "memory"),
        (("memory", "peer"), "peer"),
        (("durable", "peer"), "durable"),
        (("memory", "the moon"), "memory"),
        (("", ""), ""),
    ],
)
def test_a_restore_is_of_the_farthest_tier(tiers, farthest) -> None:
    """All wait for the worker that reads from there, whoever tells first."""

    def told(index, number, tier):
        said = Checkpoints(step=30, restored_step=39, restored_from="x", restore_seconds=0.5, restored_tier=tier)
        return training(index, number, at=40, checkpoints=said)

    job = lost_one()
    lost = missed(training(1))
    job.look(told(0, 2, tiers[0]), lost, loading(2, 2))
    job.look(told(0, 2, tiers[0]), lost, told(2, 2, tiers[1]))
    assert job.status.checkpoint.restored_tier == farthest
    job.look(told(0, 2, tiers[0]), lost, training(2, 2, at=41))
    assert job.status.checkpoint.restored_tier == farthest, "of one round it only gets farther"


def test_incidents_are_counted_when_they_are_over() -> None:
    """By what began them, once each, however often the job is looked at afterwards; and the steps that were lost."""
    job = lost_one()
    assert job.status.incident_counts == {}
    for _ in range(2):
        job.look(restored(0, 2, 30), missed(training(1)), restored(2, 2, 30))
    assert (job.status.incident_counts, job.status.lost_steps_total) == ({"PodLost": 1}, 9)


def test_reasons_are_counted_by_a_closed_set() -> None:
    """Whatever a newer trainer, or a script, calls its failure."""
    other = IncidentStatus(number=1, time="2026-11-29T00:00:00Z", kind="process", reason="MoonPhase", round=1)
    counts = incidents.tally({"Hang": 2}, other)
    assert incidents.tally(counts, other.model_copy(update={"reason": "Hang"})) == {"Hang": 3, "Other": 1}


def test_a_job_that_fails_did_not_recover() -> None:
    """Whatever an earlier incident had kept."""
    job = lost_one()
    job.look(loading(0, 2), missed(training(1)), loading(2, 2))
    fatal = Failure(names.REASON_DATA_MISSING, "no such file", 2, rank=0)
    ended = dataclasses.replace(agent(0, "failed", 2, failure=fatal), failed_for=0.1)
    job.look(ended, missed(training(1)), loading(2, 2))
    assert (job.status.state, job.status.incidents[-1].outcome) == ("Failed", "Failed")
    condition = find(job.status.conditions, "ObjectivesMet")
    assert (condition.status, "did not recover" in condition.message) == ("False", True)


def test_steps_are_counted_from_where_this_round_began() -> None:
    """Not from where an earlier one was restored: one that begins anew tells of no restore."""
    job = lost_one()
    job.look(restored(0, 2, 39), missed(training(1)), restored(2, 2, 39))
    assert job.status.incidents[-1].lost_steps == 0
    anew = training(0, 2, at=1, checkpoints=Checkpoints())
    job.look(anew, missed(training(1)), training(2, 2, at=1, checkpoints=Checkpoints()))
    assert job.status.incidents[-1].lost_steps == 0, "that one is over"


def test_a_script_that_tells_its_steps_is_over_it_with_the_next_one() -> None:
    """It runs long before; where it went on is known if it tells."""
    script = {"entrypoint": {"script": "train.py"}, "model": None, "data": None, "training": None}
    job = Job(with_copies, **{key: value for key, value in script.items() if value})
    job.look(training(0), missed(training(1)), training(2))
    quiet = [agent(index, "running", 2, store_port=5000) for index in (0, 2)]
    job.look(quiet[0], missed(training(1)), quiet[1])
    assert job.status.incidents[-1].outcome == ""
    job.look(restored(0, 2, 39), missed(training(1)), restored(2, 2, 39))
    assert (job.status.incidents[-1].outcome, job.status.incidents[-1].lost_steps) == ("Recovered", 0)
