"""What the live page is told about jobs."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_operator import goodput
from llmtrain_operator.dashboard.model import page, point, row
from llmtrain_operator.dashboard.series import Point, extended, joined
from tests.support.stage import job, pod

WHEN = "2026-01-01T00:10:00Z"


def condition(kind: str, status: str, reason: str = "Because") -> dict[str, Any]:
    """A condition as the API server has it."""
    return {"type": kind, "status": status, "reason": reason, "message": "words", "lastTransitionTime": WHEN}


def member(index: int, **more: Any) -> dict[str, Any]:
    """A member of the round whose pod is `stage.pod(index)`."""
    return {"index": index, "incarnation": 1, "pod": "p", "uid": f"pod-{index}", "host": "h", "storePort": 1, **more}


def test_a_row_has_what_kubectl_has() -> None:
    """State, nodes, step, loss, ETA, goodput, restarts, and since when."""
    told = {"step": 40, "maxSteps": 100, "loss": 3.25, "eta": "3m12s"}
    seen = row(job(nodes="2/3", progress=told, goodput="81.2%", restarts=1))
    assert (seen.key, seen.state, seen.tone, seen.nodes) == ("ns/gpt", "Running", "good", "2/3")
    assert (seen.step, seen.max_steps, seen.loss, seen.eta) == (40, 100, 3.25, "3m12s")
    assert (seen.goodput, seen.restarts, seen.created, seen.ended) == ("81.2%", 1, 1767225600.0, False)


def test_a_job_that_nobody_has_looked_at_says_so() -> None:
    """It has no status yet."""
    fresh = {**job(), "status": {}}
    assert (row(fresh).state, row(fresh).max_steps, page(fresh).started) == ("Unseen", 100, None)


def test_a_status_of_another_version_is_shown_as_unreadable() -> None:
    """With the remedy, and without harm to other jobs."""
    odd = job(state="Levitating")
    assert row(odd) == page(odd).row
    assert (row(odd).state, row(odd).tone) == ("Unreadable", "bad")
    assert "update it to the operator's version" in row(odd).bad[0].message


@pytest.mark.parametrize(
    ("kind", "status", "more", "bad"),
    [
        pytest.param("Durable", "False", {}, True, id="no storage"),
        pytest.param("Durable", "True", {}, False, id="storage"),
        pytest.param("Fits", "False", {}, True, id="too big for its memory"),
        pytest.param("Tracked", "False", {}, True, id="a tracker in trouble"),
        pytest.param("Degraded", "True", {}, True, id="degraded"),
        pytest.param("Degraded", "True", {"completionTime": WHEN}, False, id="degraded, but over"),
        pytest.param("ObjectivesMet", "False", {"completionTime": WHEN}, True, id="objectives missed, also when over"),
        pytest.param("Failed", "True", {"state": "Failed", "completionTime": WHEN}, True, id="failed"),
        pytest.param("Failed", "False", {}, False, id="not failed"),
        pytest.param("Running", "False", {}, False, id="not running is a state, no trouble"),
        pytest.param("Durable", "Unknown", {}, False, id="unknown"),
    ],
)
def test_bad_conditions_are_marked(kind: str, status: str, more: dict[str, Any], bad: bool) -> None:
    """In the list and on the page."""
    seen = page(job(conditions=[condition(kind, status)], **more))
    assert [one.bad for one in seen.conditions] == [bad]
    assert len(seen.row.bad) == bad


def test_members_are_named_with_rank_node_and_who_keeps_their_copies() -> None:
    """Buddies are ranks in the status and indexes of members for people."""
    members = [member(2, buddies=[1]), member(0, buddies=[0, 7])]
    seen = page(
        job(round={"number": 1, "procsPerMember": 1, "members": members, "startedAt": WHEN}), [pod(0, "a"), pod(2, "b")]
    )
    assert [(m.index, m.rank, m.node, m.buddies) for m in seen.members] == [(0, 1, "a", (2,)), (2, 0, "b", (0,))]


@pytest.mark.parametrize(
    ("fields", "state", "tone"),
    [
        ({}, "Running", "good"),
        ({"deleting": True}, "Terminating", "busy"),
        ({"phase": "Pending", "scheduled": False, "unschedulable_message": "no room"}, "Unscheduled: no room", "busy"),
        ({"phase": "Pending", "reason": "ImagePullBackOff"}, "Pending (ImagePullBackOff)", "busy"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_member_that_does_not_work_says_why(fields: dict[str, Any], state: str, tone: str) -> None:
    """As in `llmtrain status`."""
    [seen] = page(job(), [pod(0, "a", **fields)]).members
    assert (seen.state, seen.tone, seen.rank) == (state, tone, None)


@pytest.mark.parametrize(("status", "count"), [({}, 0), ({"completionTime": WHEN}, 1)], ids=["goes on", "over"])
def test_dead_pods_are_shown_only_of_a_job_that_is_over(status: dict[str, Any], count: int) -> None:
    """While it goes on, their replacements are what matters."""
    assert len(page(job(**status), [pod(0, "a", phase="Failed")]).members) == count


def test_steps_that_were_done_again_are_drawn_once() -> None:
    """The record goes by time; the curve goes by steps, and shows how each went the last time."""
    record = {"times": [1, 2, 3, 4], "steps": [10, 20, 15, 25], "losses": [4, 3, 3.5, 2.5], "stepSeconds": [1, 1, 1, 1]}
    seen = page(job(history=record), seen=[Point(step=26, loss=2.4, step_seconds=1)])
    assert [(p.step, p.loss) for p in seen.history] == [(10, 4.0), (15, 3.5), (25, 2.5), (26, 2.4)]


def test_the_page_s_json_is_camel_case() -> None:
    """What the scripts read, status records included."""
    one = {"number": 1, "time": WHEN, "kind": "node", "reason": "PodLost", "round": 1, "trainSeconds": 2.0}
    text = page(job(incidents=[one]), [pod(0, "a")]).model_dump_json(by_alias=True)
    assert '"maxSteps":100' in text
    assert '"trainSeconds":2.0' in text
    assert "_" not in "".join(re.findall(r'"([a-z_A-Z]+)":', text))


@pytest.mark.parametrize(
    "told", [None, {"step": 0}, {"step": 3}, {"step": 3, "loss": "odd"}, {"step": 3, "loss": None}], ids=str
)
def test_there_is_no_point_without_a_step_and_its_loss(told: dict[str, Any] | None) -> None:
    """Of scripts that report no loss, say."""
    assert point(job(progress=told)) is None


def test_a_point_is_the_newest_step() -> None:
    """With its pace."""
    assert point(job(progress={"step": 3, "loss": 2.5, "stepSeconds": 0.5})) == Point(
        step=3, loss=2.5, step_seconds=0.5
    )


@given(st.lists(st.integers(0, 60), max_size=200))
def test_a_curve_is_bounded_in_order_and_keeps_its_newest_points(steps: list[int]) -> None:
    """Whatever is trained again, and however long it goes on."""
    curve: tuple[Point, ...] = ()
    for step in steps:
        curve = extended(curve, Point(step=step), limit=16)
        assert len(curve) <= 16
        assert curve[-1].step == step
        assert list(curve) == sorted(curve, key=lambda each: each.step)
        assert len({each.step for each in curve}) == len(curve)


def test_a_full_curve_loses_detail_where_it_is_old() -> None:
    """Its first point and its newer half stay."""
    curve: tuple[Point, ...] = ()
    for step in range(17):
        curve = extended(curve, Point(step=step), limit=16)
    assert [each.step for each in curve] == [0, 2, 4, 6, *range(8, 17)]


def test_what_was_seen_is_finer_than_the_record() -> None:
    """And the record covers the time before and since."""
    record = [Point(step=step) for step in (0, 10, 20, 30)]
    assert [each.step for each in joined(record, [Point(step=15), Point(step=16), Point(step=25)])] == [
        0,
        10,
        15,
        16,
        25,
        30,
    ]
    assert joined(record, []) == tuple(record)


@pytest.mark.parametrize("cause", goodput.CAUSES)
def test_every_cause_of_the_ledger_has_a_colour(cause: str) -> None:
    """Those of the page's style sheet."""
    style = (resources.files("llmtrain_operator.dashboard") / "page" / "style.css").read_text()
    assert re.search(rf"\.of-{cause}\b", style), cause
