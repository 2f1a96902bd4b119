"""The job of a run without a cluster, from one run to the next."""

from __future__ import annotations

import pytest

from llmtrain_operator.api import JobStatus
from llmtrain_operator.contract import names
from llmtrain_operator.local.stored import as_left, as_stored, carried_on, hold, merge_patch
from tests.support.specs import job

RUNNING = {
    "observedGeneration": 1,
    "state": "Running",
    "nodes": "1/1",
    "rounds": 3,
    "restarts": 2,
    "round": {"number": 3, "procsPerMember": 1, "members": [], "startedAt": "2026-01-01T00:00:00Z"},
    "progress": {"step": 40, "maxSteps": 100},
}


def stored(status):
    return as_stored(job("j"), "first", 0) | {"status": status}


@pytest.mark.parametrize(
    ("previous", "uid"),
    [
        pytest.param(None, "second", id="no run before"),
        pytest.param(stored(RUNNING), "first", id="one that was killed"),
        pytest.param(stored(RUNNING | {"state": "Suspended"}), "first", id="one that was ended by its user"),
        pytest.param(
            stored(RUNNING | {"state": "Complete", "completionTime": "2026-01-01T00:00:00Z"}),
            "second",
            id="one that completed",
        ),
        pytest.param(stored({}), "second", id="one that never began"),
        pytest.param(stored(RUNNING | {"state": "Elsewhere"}), "second", id="one that another version wrote"),
    ],
)
def test_an_unfinished_job_is_carried_on(previous, uid):
    """It is the same job, so rounds go on counting; one that ended begins anew."""
    found = carried_on(previous, job("j"), "second", 60)
    assert found["metadata"]["uid"] == uid
    assert found.get("status", {}).get("rounds", 0) == (3 if uid == "first" else 0)


def test_the_file_is_what_the_next_run_does():
    """Whatever was ordered or filled in before; and it is a generation that the operator has not yet seen."""
    previous = stored(RUNNING)
    previous["spec"] = previous["spec"] | {"suspend": True}
    found = carried_on(previous, job("j", {"training": {"maxSteps": 200}}), "second", 60)
    assert ("suspend" in found["spec"], found["spec"]["training"]["maxSteps"]) == (False, 200)
    assert found["metadata"]["generation"] == 2


def test_a_killed_run_reads_as_suspended():
    """Nobody trains it, though the last that was written says so; what it had reached is remembered."""
    found = as_left(stored(RUNNING), 60)
    status = JobStatus.model_validate(found["status"])
    assert (status.state, status.round, status.progress, status.best_step, status.restarts) == (
        *("Suspended", None, None, 40),
        2,
    )
    assert "run it again" in next(c.message for c in status.conditions if c.type == "Suspended")
    assert as_left(found, 90) == found


@pytest.mark.parametrize(
    ("checkpoint", "discards"),
    [pytest.param(None, True, id="no storage"), pytest.param({"durable": {"storage": "file:///c"}}, False, id="saved")],
)
def test_ending_a_run_discards_only_what_cannot_be_saved(checkpoint, discards):
    """With storage the job is saved first; without it, Ctrl-C still means to end."""
    held = merge_patch(
        stored(RUNNING) | job("j", {"checkpoint": checkpoint}), hold(job("j", {"checkpoint": checkpoint}))
    )
    assert held["spec"]["suspend"]
    assert (names.ANNOTATION_DISCARD_PROGRESS in held["metadata"].get("annotations", {})) == discards


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        pytest.param({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}}, {"a": 1, "b": {"c": 2, "d": 3}}, id="nested"),
        pytest.param({"a": 1}, {"a": None}, {}, id="removed"),
        pytest.param({"a": [1, 2]}, {"a": [3]}, {"a": [3]}, id="lists are replaced"),
        pytest.param({"a": 1}, {"a": {"b": 2}}, {"a": {"b": 2}}, id="another kind"),
    ],
)
def test_a_merge_patch_is_that_of_the_rfc(target, patch, result):
    """RFC 7396, as the API server does it."""
    assert merge_patch(target, patch) == result
