"""Which fault comes when, what a job can bear, and when it has got over one."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_operator.api import JobSpec, JobStatus
from llmtrain_operator.chaos import campaign, survival
from llmtrain_operator.chaos.faults import FAULTS
from tests.support.specs import patched

ALL = tuple(FAULTS.values())
NOW = "2026-11-29T12:00:00.000Z"
MEMBERS = [
    {"index": index, "incarnation": 1, "pod": f"j-{index}-1", "uid": f"u{index}", "host": "h", "storePort": 1}
    for index in (0, 1, 4)
]


def spec(**patch: Any) -> JobSpec:
    return JobSpec.model_validate(patched(patch))


def status(**changes: Any) -> JobStatus:
    """A job in its second round that trains, whole, and has copies of its snapshots."""
    base: dict[str, Any] = {
        "state": "Running",
        "targetNodes": 3,
        "round": {"number": 2, "procsPerMember": 1, "members": MEMBERS, "startedAt": NOW},
        "progress": {"step": 40, "maxSteps": 100_000, "phase": "training", "stepSeconds": 0.1},
        "flash": {"round": 2, "committedStep": 39, "copies": 1},
        "incidents": [incident(1)],
    }
    return JobStatus.model_validate(base | changes)


def incident(number: int, **changes: Any) -> dict[str, Any]:
    base = {"number": number, "time": NOW, "kind": "process", "reason": "Killed", "round": 1, "lostSteps": 0}
    return base | {"outcome": "Recovered"} | changes


def test_a_seed_gives_the_same_blows_on_every_machine() -> None:
    """Also if more of them are wanted; another seed gives others."""
    few, many = campaign.plan(7, 5, ALL, 5.0), campaign.plan(7, 50, ALL, 5.0)
    assert many[:5] == few
    assert [blow.faults[0].name for blow in few] == [
        "kill-workers",
        "freeze-agent",
        "kill-worker",
        "partition",
        "power-off",
    ]
    assert campaign.plan(8, 5, ALL, 5.0) != few


def test_blows_are_of_all_kinds_and_within_their_bounds() -> None:
    """Each kind comes first now and then; the first never hurries, one in five of the others does."""
    blows = campaign.plan(1, 400, ALL, 5.0)
    assert {blow.faults[0] for blow in blows} == set(ALL)
    assert all(set(blow.faults) == set(ALL) and 0 <= blow.pause <= 5 and 0 <= blow.luck < 1 for blow in blows)
    assert not blows[0].hurried
    assert 40 < sum(blow.hurried for blow in blows) < 120


def test_hurried_blows_are_judged_with_the_one_before() -> None:
    """So that what came of both is nobody's alone."""
    blows = campaign.plan(1, 30, ALL, 1.0)
    grouped = campaign.groups(blows)
    assert [blow for group in grouped for blow in group] == list(blows)
    assert all(not group[0].hurried and all(blow.hurried for blow in group[1:]) for group in grouped)
    assert max(map(len, grouped)) > 1


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        pytest.param({}, None, id="whole"),
        pytest.param({"round": None, "state": "Recovering"}, "it is Recovering", id="no round"),
        pytest.param({"targetNodes": 4}, "3 of 4 members train", id="a member is missing"),
        pytest.param(
            {"progress": {"step": 4, "phase": "restoring"}}, "its workers do not train", id="not yet training"
        ),
        pytest.param({"incidents": [incident(1, outcome="")]}, "its last incident is not over", id="incident"),
        pytest.param({"flash": {"round": 1, "committedStep": 39}}, "not copied yet", id="snapshots of another round"),
        pytest.param({"flash": {"round": 2}}, "not copied yet", id="no step committed"),
        pytest.param({"flash": None}, "not copied yet", id="no word of snapshots"),
        pytest.param({"flash": {"round": 2, "trouble": "no memory"}}, None, id="none to wait for"),
    ],
)
def test_the_next_blow_waits_until_all_is_as_before(changes: dict[str, Any], why: str | None) -> None:
    """Whole, training, and with snapshots of this round, if there are any to come."""
    said = survival.why_not_yet(spec(), status(**changes))
    assert (said is None) if why is None else (said is not None and why in said)


def test_a_script_that_says_nothing_of_snapshots_is_not_waited_for() -> None:
    """It may never take any."""
    own = JobSpec.model_validate({"entrypoint": {"script": "/a.py"}, "image": "x"})
    assert survival.why_not_yet(own, status(flash=None)) is None


ALONE = {"flash": {"round": 2, "committedStep": 39, "copies": 0}}
SAVED = {"checkpoint": {"step": 20}}


@pytest.mark.parametrize(
    ("fault", "changes", "why"),
    [
        pytest.param("kill-pod", {}, None, id="a copy is elsewhere"),
        pytest.param("kill-pod", ALONE, "no other member has a copy", id="no copy"),
        pytest.param("kill-pod", ALONE | SAVED, None, id="no copy, but storage"),
        pytest.param("power-off", ALONE, "no other member has a copy", id="node without a copy"),
        pytest.param("kill-worker", ALONE, None, id="a worker leaves its pod's memory"),
        pytest.param("kill-worker", {"flash": None}, "no step is safe yet", id="nothing is safe"),
        pytest.param("kill-worker", {"failuresCounted": 10}, "maxRestarts (10) is used up", id="no budget"),
        pytest.param("freeze-worker", {"failuresCounted": 10}, None, id="costs no budget"),
        pytest.param("corrupt-snapshot", ALONE | SAVED, "would be damaged", id="the only copies"),
        pytest.param("slow-network", {"flash": None}, None, id="takes nothing"),
    ],
)
def test_what_the_job_would_not_survive_is_not_done(fault: str, changes: dict[str, Any], why: str | None) -> None:
    """Nothing is taken of which there is no other copy, and no budget is overdrawn."""
    said = survival.why_not(FAULTS[fault], spec(), status(**changes))
    assert (said is None) if why is None else (said is not None and why in said)


def test_memory_of_unknown_size_is_not_filled() -> None:
    """It may be all that the pod has."""
    own = {"model": {"preset": None, "pretrained": "/m"}}
    fault = FAULTS["fill-memory"]
    assert survival.why_not(fault, spec(), status()) is None
    assert "checkpoint.flash.memory" in (survival.why_not(fault, spec(**own), status()) or "")
    assert survival.why_not(fault, spec(**own, checkpoint={"flash": {"memory": "1Gi"}}), status()) is None


def test_the_first_fault_that_can_be_borne_is_chosen() -> None:
    """While the job recovers only what leaves all memory where it is; if asked, whatever came first."""
    blow = campaign.Blow(3, (FAULTS["kill-pod"], FAULTS["corrupt-snapshot"], FAULTS["kill-worker"]), 0.5, 0.0, False)
    hurried = campaign.Blow(4, blow.faults, 0.5, 0.0, True)
    assert campaign.choose(blow, spec(), status())[0] is FAULTS["kill-pod"]
    assert campaign.choose(blow, spec(), status(**ALONE))[0] is FAULTS["kill-worker"]
    assert campaign.choose(hurried, spec(), status())[0] is FAULTS["kill-worker"]
    assert campaign.choose(blow, spec(), status(flash=None), unsafe=True)[0] is FAULTS["kill-pod"]
    chosen, why = campaign.choose(blow, spec(), status(flash=None))
    assert chosen is None
    assert why.startswith("kill-pod: no other member has a copy")


@pytest.mark.parametrize(("luck", "index"), [(0.0, 0), (0.5, 1), (0.999, 4), (1.0, 4)], ids=str)
def test_luck_falls_on_a_member_of_the_round(luck: float, index: int) -> None:
    """Unless one is named; on nobody if there is no round."""
    found = campaign.victim(luck, status(), None)
    assert found is not None
    assert found.index == index
    named = campaign.victim(luck, status(), 1)
    assert named is not None
    assert named.index == 1
    assert campaign.victim(luck, status(), 2) is None
    assert campaign.victim(luck, status(round=None), None) is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        pytest.param({}, None, id="long to go"),
        pytest.param(
            {"progress": {"step": 90, "maxSteps": 100, "stepSeconds": 0.1}}, "it ends in 1 s", id="nearly done"
        ),
        pytest.param({"completionTime": NOW, "state": "Complete"}, "it is Complete", id="done"),
    ],
)
def test_a_job_is_left_alone_at_its_end(changes: dict[str, Any], why: str | None) -> None:
    """It may be over before it is struck."""
    assert survival.why_too_late(status(**changes)) == why


@pytest.mark.parametrize(
    ("fault", "changes", "over"),
    [
        pytest.param("kill-pod", {}, False, id="nobody has noticed"),
        pytest.param("kill-pod", {"incidents": [incident(1), incident(2, outcome="")]}, False, id="noticed"),
        pytest.param("kill-pod", {"incidents": [incident(1), incident(2)]}, False, id="no further step"),
        pytest.param(
            "kill-pod",
            {"incidents": [incident(1), incident(2)], "progress": {"step": 41, "phase": "training"}},
            True,
            id="trains on",
        ),
        pytest.param("slow-network", {"progress": {"step": 41, "phase": "training"}}, True, id="no round was lost"),
        pytest.param("partition", {"progress": {"step": 41, "phase": "training"}}, False, id="somebody has to notice"),
        pytest.param("kill-pod", {"completionTime": NOW, "state": "Complete"}, True, id="the job is done"),
    ],
)
def test_a_job_is_over_a_fault_when_it_trains_on(fault: str, changes: dict[str, Any], over: bool) -> None:
    """Whole, beyond the step at which it was struck; what ends a round has to be noticed first."""
    assert campaign.is_over([FAULTS[fault]], spec(), status(), status(**changes)) is over


@pytest.mark.parametrize(
    ("changes", "over", "says"),
    [
        pytest.param({"incidents": [incident(1), incident(2)]}, True, [], id="as it should be"),
        pytest.param(
            {"incidents": [incident(1), incident(2, lostSteps=3)]},
            True,
            ["incident 2: 3 committed steps lost"],
            id="steps lost",
        ),
        pytest.param({}, False, ["nobody noticed"], id="not noticed"),
        pytest.param({"incidents": [incident(1), incident(2)]}, False, ["the job did not get over it"], id="stuck"),
        pytest.param(
            {"state": "Failed", "completionTime": NOW, "lastFailure": {"reason": "Killed", "message": "again"}},
            True,
            ["the job failed: Killed: again"],
            id="failed",
        ),
    ],
)
def test_what_went_wrong_is_told(changes: dict[str, Any], over: bool, says: list[str]) -> None:
    """Earlier incidents are not held against it."""
    before = status(incidents=[incident(1, lostSteps=9)])
    assert campaign.wrongs([FAULTS["kill-worker"]], before, status(**changes), over=over) == says
