"""A campaign against a job that does what the test says: what is waited for, who is hit, and what is told."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from llmtrain_operator.chaos import campaign, report, run
from llmtrain_operator.chaos.faults import FAULTS, Fault
from llmtrain_operator.chaos.run import Campaign, Target, Terms, Trial
from llmtrain_operator.ports import Rejected, Unavailable
from llmtrain_operator.state import PodView
from tests.support.specs import job
from tests.unit.test_chaos_campaign import MEMBERS, NOW, incident, status

KILL = FAULTS["kill-worker"]


class World:
    """The job, its pods, and the hand that hits them. `reacts` is what a blow does to the status."""

    faults = (KILL,)

    def __init__(self, reacts: Callable[[World], None] = lambda world: world.recovers()) -> None:
        self.status: dict[str, Any] = status(incidents=[]).model_dump(mode="json", by_alias=True)
        self.hit: list[str] = []
        self.misses = self.looks = 0
        self.false_alarm = False
        self._reacts = reacts

    def recovers(self, **facts: Any) -> None:
        """An incident, and training goes on."""
        number = len(self.status["incidents"]) + 1
        self.status["incidents"] = [*self.status["incidents"], incident(number, **facts)]
        self.status["progress"]["step"] += 1

    async def job(self, _: str, name: str) -> dict[str, Any]:
        self.looks += 1
        if self.looks % 7 == 0:
            raise Unavailable("no answer for a moment")
        return {**job(name), "status": self.status}

    async def pods(self, _: str, __: str) -> list[PodView]:
        return [pod(member["index"], member["uid"]) for member in MEMBERS] + [pod(0, "an impostor")]

    async def strike(self, fault: Fault, pod: PodView, *_: float) -> str:
        if self.misses:
            self.misses -= 1
            raise Rejected("no worker runs in this pod")
        self.hit.append(pod.uid)
        self._reacts(self)
        return f"{fault.name} of {pod.name}"


def pod(index: int, uid: str) -> PodView:
    facts: dict[str, Any] = {"phase": "Running", "ready": True, "node": "n", "deleting": False, "ip": "", "reason": ""}
    facts |= {"message": "", "exit_code": None, "created": NOW, "scheduled": True, "unschedulable_message": ""}
    return PodView(f"j-{index}-1", "ns", uid, "j", index, 1, **facts)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks follow each other at once."""
    monkeypatch.setattr(run, "_INTERVAL", 0.001)
    monkeypatch.setattr(run, "_UNNOTICED", 0.1)


async def strike(
    world: World, count: int = 1, faults: Sequence[Fault] = (KILL,), *, hurried: bool = False, **terms: Any
) -> tuple[list[Trial], list[str]]:
    """The trials, and what was told beside them."""
    told: list[str] = []
    said: list[Trial] = []
    chosen = Terms(patience=0.2) if not terms else dataclasses.replace(Terms(patience=0.2), **terms)
    blows = [
        dataclasses.replace(blow, hurried=hurried and blow.number > 1) for blow in campaign.plan(1, count, faults, 0.0)
    ]

    def say(trial: Trial) -> None:
        said.append(trial)
        if world.false_alarm:
            world.recovers(reason="Hang")
            world.false_alarm = False

    trials = await Campaign(Target(world, "ns", "j"), world, chosen, say, told.append).run(blows)
    assert said == trials
    return trials, told


async def test_each_fault_is_done_once_the_job_has_got_over_the_one_before() -> None:
    """To members of its round alone, whatever else carries its label; incidents are told with the fault."""
    world = World()
    trials, told = await strike(world, 4)
    assert [each.number for trial in trials for each in trial.struck] == [1, 2, 3, 4]
    assert [[one.number for one in trial.incidents] for trial in trials] == [[1], [2], [3], [4]]
    assert set(world.hit) < {"u0", "u1", "u4"}
    assert not told
    assert not [trial.wrongs for trial in trials if trial.wrongs]
    assert report.summary(trials) == "4 faults, 0 committed steps lost, nothing went wrong"


@pytest.mark.parametrize("told", [1, 2], ids=["the second is never told of", "the second is noticed later"])
async def test_faults_in_a_hurry_are_judged_when_all_are_told_of_or_never_will_be(told: int) -> None:
    """The job trains already when the second one is noticed, which is no incident without a fault."""

    def reacts(world: World) -> None:
        if len(world.hit) == 1:
            world.recovers()
        elif told == 2:
            asyncio.get_running_loop().call_later(0.03, lambda: world.recovers(reason="Hang"))

    world = World(reacts)
    [trial] = (await strike(world, 2, hurried=True))[0]
    assert (len(trial.struck), len(trial.incidents), trial.wrongs) == (2, told, ())
    assert len(world.hit) == 2


async def test_a_member_can_be_named_and_all_can_be_hit_at_once() -> None:
    """The report says which."""
    world = World()
    assert (await strike(world, member=4))[0][0].struck[0].member == 4
    assert world.hit == ["u4"]
    [trial] = (await strike(world, faults=[FAULTS["kill-workers"]]))[0]
    assert world.hit[1:] == ["u0", "u1", "u4"]
    assert trial.struck[0].member == -1


async def test_between_rounds_it_is_tried_again() -> None:
    """There is nobody to hit for a moment."""
    world = World()
    world.misses = 3
    assert (await strike(world))[0][0].struck
    world.misses = 10_000
    trials, told = await strike(world)
    assert not trials
    assert told == ["1: kill-worker could not be done: no worker runs in this pod"]


@pytest.mark.parametrize(
    ("reacts", "wrong"),
    [
        pytest.param(lambda _: None, "nobody noticed", id="no incident"),
        pytest.param(lambda world: world.recovers(lostSteps=2), "incident 1: 2 committed steps lost", id="steps lost"),
        pytest.param(
            lambda world: world.recovers(outcome=""), "the job did not get over it", id="an incident without an end"
        ),
    ],
)
async def test_a_campaign_ends_with_the_first_fault_that_went_wrong(
    reacts: Callable[[World], None], wrong: str
) -> None:
    """What is in ruins tells nothing of the next fault."""
    trials, _ = await strike(World(reacts), 3)
    assert [trial.wrongs for trial in trials] == [(wrong,)]


async def test_an_incident_that_no_fault_explains_is_told() -> None:
    """A false alarm, say, while the job trained undisturbed."""
    world = World()
    world.false_alarm = True
    trials, _ = await strike(world, 2)
    assert [trial.wrongs for trial in trials] == [(), ("incident 2 (Hang) came without a fault",)]


async def test_a_job_that_has_ended_is_struck_no_more() -> None:
    """That is no failure; one that does not come to train is."""
    world = World()
    world.status |= {"completionTime": NOW, "state": "Complete"}
    assert await strike(world, 3) == ([], ["no more faults: it is Complete"])
    world.status |= {"completionTime": None, "state": "Pending", "round": None}
    with pytest.raises(Rejected, match="j does not come to train: it is Pending"):
        await strike(world)


async def test_what_the_job_could_not_bear_is_told() -> None:
    """And not done, unless it is asked for."""
    world = World()
    world.status["failuresCounted"] = 10
    trials, told = await strike(world)
    assert not trials
    assert "1: nothing that the job could bear: kill-worker: spec.recovery.maxRestarts (10) is used up" in told[0]
    assert (await strike(world, unsafe=True))[0]
