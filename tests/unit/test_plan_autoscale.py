"""A job that chooses its own size: what it learns, asks for, takes, gives up and says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from llmtrain_operator.api import JobStatus
from llmtrain_operator.contract.wire import Progress
from llmtrain_operator.estimate.prior import step_seconds
from llmtrain_operator.plan import plan
from llmtrain_operator.plan.autoscale import LOSS_PATIENCE, YIELD_PATIENCE
from llmtrain_operator.plan.learning import prior
from llmtrain_operator.plan.probe import AGAIN, PATIENCE
from llmtrain_operator.state import CreatePod, DeletePod, Event, Observed, PodView
from tests.support.planner import JOB, NOW, agent, condition, pod, spec

STORAGE = {"durable": {"storage": "file:///c"}}


class Life:
    """A job under autoscale and its cluster: pods get nodes while there are any, agents obey, training goes on."""

    def __init__(self, there: int, seconds: Callable[[int], float] = lambda n: 1.0 / n, **fields: Any) -> None:
        self.nodes, self.seconds = there, seconds
        base: dict[str, Any] = {
            "nodes": {"min": 1, "max": 4, "desired": 4},
            "training": {"maxSteps": 100_000, "globalBatchSize": 24},
            "checkpoint": STORAGE,
            "autoscale": {"enabled": True},
        }
        self.spec = spec(**(base | fields))
        self.status = JobStatus()
        self.pods: dict[str, PodView] = {}
        self.reports: dict[str, Any] = {}
        self.directives: dict[str, Any] = {}
        self.events: list[Event] = []
        self.created: list[int] = []
        self.claimed, self.step, self.now, self.hint = 0, 0.0, NOW, True
        self.others = 0  # nodes that somebody else has
        self.slow_scheduler: set[str] = set()  # pods that it does not look at now

    @property
    def free(self) -> int:
        return self.nodes - self.others - sum(bool(p.node) for p in self.pods.values())

    @property
    def size(self) -> int:
        return len(self.status.round.members) if self.status.round else 0

    def plan(self):
        room = max(0, self.free) if self.hint else None
        claimants = ("d/urgent",) if self.claimed else ()
        seen = Observed(
            tuple(self.pods.values()), dict(self.reports), True, room=room, claimed=self.claimed, claimants=claimants
        )
        return plan(JOB, self.spec, (), self.status, seen, self.now)

    def tick(self, seconds: float = 1.0) -> None:
        """Time passes, then one pass and what follows from it."""
        self.now += seconds
        self._train(seconds)
        decided = self.plan()
        self.status, self.directives = decided.status, dict(decided.directives)
        self.events += decided.events
        for action in decided.actions:
            if isinstance(action, CreatePod):
                self._create(action)
            elif isinstance(action, DeletePod):
                assert action.uid not in {m.uid for m in self.status.round.members} if self.status.round else True
                self.pods.pop(action.uid)
                self.reports.pop(action.uid, None)
        self._schedule()
        self._obey()

    def run(self, seconds: int) -> None:
        """Looked at every second for a minute, then more rarely: what is to happen at once has happened by then."""
        for _ in range(min(seconds, 60)):
            self.tick()
        for _ in range((seconds - 60) // 5):
            self.tick(5.0)

    def until(self, condition: Callable[[], object], seconds: int = 400) -> None:
        for _ in range(seconds):
            if condition():
                return
            self.tick()
        raise AssertionError(f"not within {seconds} s: {self.status.model_dump_json(indent=1, exclude_none=True)}")

    def lose_a_node(self) -> None:
        """The newest member's node is gone, and its pod with it."""
        lost = max((p for p in self.pods.values() if p.node), key=lambda p: p.index)
        self.nodes -= 1
        del self.pods[lost.uid], self.reports[lost.uid]

    def told(self, reason: str) -> list[str]:
        return [event.message for event in self.events if event.reason == reason]

    def _create(self, made: CreatePod) -> None:
        self.created.append(made.index)
        uid = f"{made.index}-{made.incarnation}"
        self.pods[uid] = pod(
            made.index, uid=uid, incarnation=made.incarnation, name=f"j-{uid}", phase="Pending", ready=False, node="",
            scheduled=False, avoids=made.avoid,
        )  # fmt: skip

    def _schedule(self) -> None:
        for each in list(self.pods.values()):
            if each.node or each.uid in self.slow_scheduler:
                continue
            if self.free > 0:
                changes = {"phase": "Running", "node": f"n-{each.uid}", "scheduled": True, "unschedulable_message": ""}
            else:
                changes = {"unschedulable_message": "0/3 nodes are available"}
            self.pods[each.uid] = dataclasses.replace(each, **changes)

    def _obey(self) -> None:
        for each in self.pods.values():
            told, known = self.directives.get(each.uid), self.reports.get(each.uid)
            if not each.node:
                continue
            report = known.report if known else None
            joins = told and told.action == "run" and (report is None or report.round < told.round.number)
            leaves = told and told.action in ("save", "wait") and report and report.state == "running"
            if report is None or leaves:
                self._report(each, "joining", report.round if report else 0, store_port=4000 + each.index)
            elif joins:
                self._report(each, "running", told.round.number, store_port=0)

    def _report(self, each: PodView, state: str, number: int, **more: Any) -> None:
        made = agent(each.index, state, number, uid=each.uid, pod=each.name, incarnation=each.incarnation, **more)
        self.reports[each.uid] = dataclasses.replace(made, uid=each.uid)

    def _train(self, seconds: float) -> None:
        running = [v for v in self.reports.values() if v.report.state == "running"]
        if not self.status.round or len(running) < self.size:
            return
        self.step += seconds / self.seconds(self.size)
        for view in running:
            number, each = self.status.round.number, self.seconds(self.size)
            told = Progress(0, number, step=int(self.step), max_steps=100_000, step_seconds=each)
            self.reports[view.uid] = dataclasses.replace(view, report=dataclasses.replace(view.report, progress=told))


def test_without_autoscale_nothing_is_learned_or_said():
    """The job has what nodes.desired says, and its status knows nothing of all this."""
    life = Life(3, autoscale={"enabled": False})
    life.run(100)
    assert (life.status.autoscale, life.status.step_times, life.status.target_nodes) == (None, None, 4)
    assert not life.told("Autoscaled")


def test_a_job_begins_with_what_there_is_room_for():
    """It does not wait for members that no node would take."""
    life = Life(2)
    life.until(lambda: life.size)
    assert (life.size, life.status.target_nodes, life.created) == (2, 2, [0, 1])


def test_a_node_that_comes_is_used_within_seconds():
    """A pod asks for it, gets it, and joins; prediction, gain and pause are on record."""
    life = Life(2)
    life.until(lambda: life.size == 2)
    life.run(1000)
    assert life.created == [0, 1, 2, 3], "once, for an autoscaler of nodes to see"
    assert len(life.pods) == 2
    life.nodes = 3
    life.until(lambda: life.size == 3, 10)
    life.run(30)
    assert life.status.target_nodes == 3
    last = life.status.autoscale.last
    assert (last.from_nodes, last.to_nodes, last.reason) == (2, 3, "Growing")
    assert last.predicted_speedup == pytest.approx(1.5, rel=0.15)
    assert last.achieved_speedup == pytest.approx(1.5, rel=0.01)
    assert 0 < last.pause_seconds < 5
    assert life.told("Autoscaled")
    assert "achieved 1.50x" in life.told("AutoscaleMeasured")[0]


def test_a_pod_that_waits_holds_up_nobody():
    """What is asked for in vain is taken back, and not asked for again until there is more room or much time is over;
    the round goes on all the while."""
    life = Life(2)
    life.hint = False
    life.until(lambda: life.size == 2)
    life.until(lambda: life.status.autoscale.probe)
    life.run(round(PATIENCE) + 2)
    assert life.status.autoscale.probe is None
    asked = len(life.created)
    life.run(round(AGAIN) - 30)
    assert len(life.created) == asked
    life.run(60)
    assert len(life.created) > asked, "somebody may have gone meanwhile"
    assert (life.status.rounds, life.status.restarts, life.size) == (1, 0, 2)
    life.nodes = 3
    life.until(lambda: life.size == 3, round(AGAIN + PATIENCE) + 10)


def test_a_pod_that_has_waited_for_a_node_is_made_anew_when_one_comes():
    """The scheduler takes up to ten seconds to look again at one that it could not place."""
    life = Life(2)
    life.until(lambda: life.size == 2)
    life.run(20)
    assert {p.uid for p in life.pods.values() if not p.node} == {"2-1", "3-1"}
    life.slow_scheduler = {"2-1", "3-1"}
    life.nodes = 3
    life.until(lambda: life.size == 3, 10)
    assert {p.uid for p in life.pods.values()} == {"0-1", "1-1", "2-2"}


def test_a_lost_node_is_waited_for_and_then_done_without():
    """Its member counts as about to be back for a while; the loss is on record, and a node that comes is used again."""
    life = Life(3)
    life.until(lambda: life.size == 3)
    life.run(30)
    life.lose_a_node()
    life.run(round(LOSS_PATIENCE) - 5)
    assert (life.size, life.status.target_nodes) == (2, 3)
    life.run(15)
    assert (life.size, life.status.target_nodes) == (2, 2)
    assert life.status.autoscale.losses[0].left == 2
    assert condition(life.status, "Autoscaled")[0] == "True"
    life.nodes += 1
    life.until(lambda: life.size == 3, 120)


def test_members_are_given_up_for_a_job_of_higher_priority_and_come_back():
    """At a step boundary, no round is lost; what was given up is on its way for a while, so no more is; when it is
    over the job grows again."""
    life = Life(3)
    life.until(lambda: life.size == 3)
    life.run(30)
    life.claimed = 1
    life.until(lambda: life.size == 2, 10)
    life.run(round(YIELD_PATIENCE) - 12)
    assert (life.size, life.status.autoscale.last.reason) == (2, "HigherPriority")
    assert "d/urgent" in life.told("Autoscaled")[-1]
    life.others, life.claimed = 1, 0
    life.run(400)
    assert life.size == 2
    life.others = 0
    life.until(lambda: life.size == 3, 120)
    assert (life.status.restarts, life.status.incidents) == (0, ())


def test_never_below_the_minimum_whoever_claims():
    """nodes.min is the job's own."""
    life = Life(3, nodes={"min": 2, "max": 4, "desired": 4})
    life.until(lambda: life.size == 3)
    life.claimed = 3
    life.run(200)
    assert life.size == 2


def test_desired_is_the_cap():
    """`kubectl scale`, HPA and KEDA drive the same path: less at once, more as there is room and gain."""
    life = Life(4)
    life.until(lambda: life.size == 4)
    life.spec = life.spec.model_copy(update={"nodes": life.spec.nodes.model_copy(update={"desired": 2})})
    life.until(lambda: life.size == 2, 10)
    life.run(100)
    life.spec = life.spec.model_copy(update={"nodes": life.spec.nodes.model_copy(update={"desired": 4})})
    life.until(lambda: life.size == 4, 200)


@pytest.mark.parametrize(
    ("seconds", "nodes", "size"),
    [(lambda _: 1.0, 4, 1), (lambda n: 0.2 + 0.3 * n, 4, 1), (lambda n: 0.05 + 1.0 / n, 4, 4)],
    ids=["more-do-not-help", "more-are-slower", "more-help"],
)
def test_it_comes_to_rest_at_a_size_that_pays(seconds, nodes, size):
    """Whatever the curve is: then nothing changes any more, no pods come and go."""
    life = Life(1, seconds)
    life.run(60)
    life.nodes = nodes
    life.run(1000)
    before = life.status.rounds, len(life.created)
    life.run(600)
    assert (life.size, life.status.rounds, len(life.created)) == (size, *before)


def test_turned_on_it_keeps_the_size_and_turned_off_it_forgets():
    """A round that runs is not ended for that; without it the job has what nodes.desired says."""
    life = Life(3, autoscale={"enabled": False}, nodes={"min": 1, "max": 3, "desired": 2})
    life.until(lambda: life.size == 2)
    on, off = life.spec.autoscale.model_copy(update={"enabled": True}), life.spec.autoscale
    life.spec = life.spec.model_copy(update={"autoscale": on})
    life.run(30)
    assert (life.size, life.status.rounds, life.status.target_nodes) == (2, 1, 2)
    life.spec = life.spec.model_copy(update={"autoscale": off})
    life.run(3)
    assert (life.status.autoscale, condition(life.status, "Autoscaled")) == (None, ("False", "Disabled"))


def test_what_was_learned_survives_the_operator():
    """All of it is in the status: a plan made from its JSON form is the same."""
    life = Life(2)
    life.until(lambda: life.size == 2)
    life.run(60)
    assert life.status.step_times.sizes[0].steps >= 5
    again = JobStatus.model_validate_json(life.status.model_dump_json(by_alias=True, exclude_none=True))
    first, life.status = life.plan(), again
    assert life.plan() == first


def test_the_estimate_is_the_prior():
    """What the estimate says of the range's ends and middle is what the policy begins with; of a script, nothing."""
    own = spec(nodes={"min": 1, "max": 9}, training={"maxSteps": 10, "globalBatchSize": 24})
    assert [(each.members, each.step_seconds) for each in prior(own)] == [(n, step_seconds(own, n)) for n in (1, 5, 9)]
    assert prior(spec(nodes={"min": 1, "max": 9}, entrypoint={"script": "a.py"})) == ()


def test_the_noise_of_steps_is_on_record():
    """Steps that vary much are known to, also to an operator that comes later."""
    life = Life(2, lambda n: 1.0 / n)
    life.run(120)
    calm = life.status.step_times.sizes[-1].noise
    life.seconds = lambda n: (1.0 + 0.5 * (int(life.now) // 7 % 2)) / n
    life.run(600)
    assert life.status.step_times.sizes[-1].noise > 2 * calm
