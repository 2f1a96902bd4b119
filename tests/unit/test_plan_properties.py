"""The planner against a world that breaks at random: pods, agents and users do anything in any order."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmtrain_operator.api import JobSpec, JobStatus
from llmtrain_operator.conditions import seconds
from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import (
    Check,
    Checkpoints,
    Directive,
    Failure,
    Pace,
    Preflight,
    Progress,
    Report,
    Spent,
)
from llmtrain_operator.plan import plan
from llmtrain_operator.state import AgentView, CreatePod, DeleteJob, DeletePod, FillDesired, JobView, Observed, PodView

MAX_PODS = 4
ENDED = ("Complete", "Failed")


class World(RuleBasedStateMachine):
    """A job, its pods and agents; `reconcile` lets the planner act on them, the other rules are what can happen."""

    @initialize(
        low=st.integers(1, 3),
        span=st.integers(0, 2),
        spares=st.integers(0, 2),
        restarts=st.integers(0, 3),
        durable=st.booleans(),
        checks=st.booleans(),
        straggler=st.sampled_from(["report", "replace"]),
        accounts=st.booleans(),
        scales=st.booleans(),
    )
    def apply_job(
        self,
        low: int,
        span: int,
        spares: int,
        restarts: int,
        durable: bool,
        checks: bool,
        straggler: str,
        accounts: bool,
        scales: bool,
    ) -> None:
        self.accounts = accounts
        high = min(low + span, MAX_PODS)
        self.durable = durable
        self.storage_works = True
        self.checks = checks
        self.slow: set[str] = set()
        self.saved: int | None = None
        self.straggler: int | None = None
        self.spec = JobSpec.model_validate(
            {
                "nodes": {"min": low, "max": high, "spares": spares},
                "autoscale": {"enabled": scales and low < high},
                "model": {"preset": "gpt-tiny"},
                "data": {"source": "/data"},
                "training": {"maxSteps": 100},
                "recovery": {
                    "maxRestarts": restarts,
                    "preflight": {"enabled": checks},
                    "straggler": straggler,
                },
                "checkpoint": {"durable": {"storage": "file:///c"}} if durable else {},
            }
        )
        self.job = JobView("j", "d", "job-uid", 1)
        self.status = JobStatus()
        self.pods: dict[str, PodView] = {}
        self.agents: dict[str, AgentView] = {}
        self.directives: dict[str, Directive] = {}
        self.children = False
        self.leaving: dict[str, str] = {}
        self.room: int | None = None
        self.claimed = 0
        self.now = 1_000_000.0
        self.number = 0
        self.born = 0

    # --- what can happen ----------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 2.0, 30.0, 200.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def nodes_work(self) -> None:
        for pod in list(self.pods.values()):
            if pod.deleting:
                self._vanish(pod)
            elif pod.phase == "Pending":
                self._set(pod, phase="Running", scheduled=True, node=f"n{pod.index}", ip="10.0.0.1")

    @rule()
    def agents_obey(self) -> None:
        for pod in list(self.pods.values()):
            if pod.phase == "Running" and not pod.deleting:
                self._obey(pod)

    @rule()
    def things_go_well_for_a_while(self) -> None:
        """Chance alone would hardly ever get a job to run, and only running jobs break in interesting ways."""
        for _ in range(4):
            self.now += 1.0
            self.nodes_work()
            self.agents_obey()
            self._check(self._plan())
        self.training_goes_on(7)

    @precondition(lambda self: self._running())
    @rule(data=st.data())
    def a_pod_fails(self, data) -> None:
        if pod := self._pick(data, "Running"):
            self._set(pod, phase="Failed", reason="Evicted")
            self.agents.pop(pod.uid, None)

    @rule(data=st.data())
    def a_pod_is_deleted_by_someone(self, data) -> None:
        if pod := self._pick(data, "Running", "Pending"):
            self._set(pod, deleting=True)

    @rule(taint=st.sampled_from(["", "karpenter.sh/disrupted:NoSchedule"]))
    def a_node_is_about_to_go_or_is_not(self, taint: str) -> None:
        """All pods are on it, and all replacements land on it again."""
        self.leaving = {"n1": taint} if taint else {}

    @precondition(lambda self: self._running())
    @rule(data=st.data())
    def someone_else_tells_a_member_to_end(self, data) -> None:
        if (pod := self._pick(data, "Running")) and pod.uid in self.agents:
            self._report(pod, leaving="SIGTERM")

    @precondition(lambda self: self._running())
    @rule(data=st.data())
    def an_agent_goes_silent(self, data) -> None:
        if (pod := self._pick(data, "Running")) and pod.uid in self.agents:
            self._agent(pod, connected=False, silent_for=60.0, detail="closed")

    @precondition(lambda self: self._running())
    @rule(data=st.data(), permanent=st.sampled_from([False, False, False, True]))
    def a_worker_fails(self, data, permanent: bool) -> None:
        for pod in self._in_round(data):
            reason = names.REASON_NON_FINITE_LOSS if permanent else names.REASON_KILLED
            failure = Failure(reason, "it broke", self.number, rank=0, step=5)
            self._report(pod, state="joining", store_port=self._port(), failure=failure)

    @precondition(lambda self: self._running())
    @rule(step=st.integers(0, 99))
    def training_goes_on(self, step: int) -> None:
        for pod in self._running():
            self._trains(pod, step)

    @rule(index=st.sampled_from([None, 0, 1, 2]))
    def a_member_is_slow(self, index: int | None) -> None:
        self.straggler = index
        for step in (5, 35, 65) if self._running() else ():
            self.now += 15.0
            self.training_goes_on(step)
            self._check(self._plan())

    @precondition(lambda self: self.durable)
    @rule(works=st.booleans())
    def storage_breaks_or_heals(self, works: bool) -> None:
        self.storage_works = works

    @precondition(lambda self: self.durable and self._running())
    @rule()
    def a_checkpoint_is_due(self) -> None:
        if self.storage_works and self.status.progress:
            self.saved = self.status.progress.step
        for pod in self._running():
            self._trains(pod, self.status.progress.step if self.status.progress else 0)

    @precondition(lambda self: self.checks)
    @rule(data=st.data())
    def a_node_is_slow(self, data) -> None:
        if pod := self._pick(data, "Running", "Pending"):
            self.slow.add(pod.uid)

    @precondition(lambda self: self._running())
    @rule()
    def training_ends_well(self) -> None:
        for pod in self._running():
            self._report(pod, state="succeeded")

    @precondition(lambda self: self.spec.autoscale.enabled)
    @rule(room=st.sampled_from([None, 0, 1, 3]), claimed=st.integers(0, 2))
    def others_come_and_go(self, room: int | None, claimed: int) -> None:
        self.room, self.claimed = room, claimed

    @rule(desired=st.integers(0, 5))
    def someone_scales(self, desired: int) -> None:
        self._spec(nodes=self.spec.nodes.model_copy(update={"desired": desired}))

    @rule(low=st.integers(1, 3), span=st.integers(0, 2))
    def someone_edits_the_range(self, low: int, span: int) -> None:
        high = min(low + span, MAX_PODS)
        desired = self.spec.nodes.desired and max(low, min(high, self.spec.nodes.desired))
        self._spec(nodes=self.spec.nodes.model_copy(update={"min": low, "max": high, "desired": desired}))

    @rule(value=st.booleans(), discard=st.booleans())
    def someone_suspends_or_resumes(self, value: bool, discard: bool) -> None:
        annotations = {names.ANNOTATION_DISCARD_PROGRESS: "true"} if discard else {}
        self.job = dataclasses.replace(self.job, annotations=annotations)
        self._spec(suspend=value)

    @rule()
    def an_operator_dies_after_the_status_write(self) -> None:
        """Only the status survives; the plan's actions are never carried out."""
        self.status = self._plan().status
        self.children = False

    @rule()
    def reconcile(self) -> None:
        self._check(self._plan())

    # --- what must hold -----------------------------------------------------------------------------------------

    @invariant()
    def bounds_hold(self) -> None:
        if not hasattr(self, "spec"):
            return
        members = self.status.round.members if self.status.round else ()
        assert len({member.index for member in members}) == len(members)
        live = [p for p in self.pods.values() if not p.deleting and p.phase in ("Pending", "Running")]
        assert len({pod.index for pod in live}) <= MAX_PODS + self.spec.nodes.spares

    def teardown(self) -> None:
        """From wherever chance led, a kind world and repeated passes end in quiet: nothing more to do."""
        if not hasattr(self, "spec"):
            return
        self.storage_works = True
        self.slow.clear()
        self.room, self.claimed = 0, 0
        for turn in range(60):
            self.now += 15.0
            self.nodes_work()
            self.agents_obey()
            self.training_goes_on(min(50, 20 + turn))
            self._check(self._plan())
        last = self._plan()
        assert not last.actions
        assert not last.events
        assert last.status == self.status, "planning again at the same moment changes nothing"
        assert last.directives == self.directives
        resting = "Suspended" if self.spec.suspend and not self.status.round else "Running"
        assert self.status.state in {resting, *ENDED}
        if self.durable and self.status.state == "Running":
            assert self.status.spares == (self.spec.nodes.spares or None), "and its spares"
            assert self.status.nodes == f"{self.status.target_nodes}/{self.status.target_nodes}", "it has its size"
            assert self.status.round
            assert not self.status.round.ending

    def _plan(self):
        observed = Observed(
            tuple(self.pods.values()),
            dict(self.agents),
            self.children,
            leaving=self.leaving,
            room=self.room,
            claimed=self.claimed,
            claimants=("d/other",) if self.claimed else (),
        )
        return plan(self.job, self.spec, (), self.status, observed, self.now)

    def _check(self, decided) -> None:
        stored = decided.status.round
        in_round = {member.uid for member in stored.members} if stored else set()
        assert decided.status.rounds >= self.number
        if stored and decided.status.rounds > self.status.rounds:
            assert self.spec.nodes.min <= len(stored.members) <= self.spec.nodes.maximum
            assert not self.checks or all(self.agents[uid].report.preflight.attempt for uid in in_round)
        self._check_endings(decided, in_round)
        if not decided.status.completion_time and decided.status.start_time:
            lived = self.now - seconds(decided.status.start_time)
            self._check_time(decided.status, lived)
        for action in decided.actions:
            if isinstance(action, DeletePod):
                assert action.reason
                if action.uid in in_round and decided.status.state not in ENDED:
                    assert self._is_slow(decided, action.uid), "a pod of the current round"
        if decided.status.state in ENDED:
            assert not any(isinstance(action, CreatePod) for action in decided.actions)
        self._carry_out(decided)

    def _check_time(self, status: JobStatus, lived: float) -> None:
        """Every second is booked once, in the timeline too; accelerators are paid for while there are pods."""
        assert sum(status.ledger.values()) == pytest.approx(lived, abs=0.002)
        assert min(status.ledger.values(), default=0.0) >= 0
        assert min(status.accelerator_ledger.values(), default=0.0) >= 0
        assert sum(each.seconds for each in status.timeline) == pytest.approx(lived, abs=0.01)
        drawn = {cause: sum(s.seconds for s in status.timeline if s.cause == cause) for cause in status.ledger}
        assert drawn == pytest.approx(status.ledger, abs=0.01)
        most = lived * (MAX_PODS + self.spec.nodes.spares + len(self.pods))
        assert sum(status.accelerator_ledger.values()) <= most + 0.01

    def _is_slow(self, decided, uid: str) -> bool:
        """Whether this is the one straggler that may be replaced: all others are there, and are enough."""
        chosen = decided.status.replaced
        enough = len(decided.status.round.members) > self.spec.nodes.min
        return self.spec.recovery.straggler == "replace" and chosen is not None and chosen.uid == uid and enough

    def _check_endings(self, decided, in_round: set[str]) -> None:
        """Nobody is told to save but a round that is to end; leaving as asked is no restart and no failure."""
        told = {uid for uid, directive in decided.directives.items() if directive.action == "save"}
        ending = decided.status.round.ending if decided.status.round else None
        there = {uid for uid in in_round if uid in decided.directives and not self.pods[uid].deleting}
        over = decided.status.completion_time is not None
        assert told == (there if ending and not over else set())
        if ending:
            assert self.durable
        reasons = [event.reason for event in decided.events]
        if "RoundClosed" in reasons:
            assert decided.status.restarts == self.status.restarts
            # Of the round, that is: a newcomer that has failed may be told of in the same pass.
            assert "PodFailed" in reasons or decided.status.last_failure == self.status.last_failure

    def _carry_out(self, decided) -> None:
        self.status, self.directives, self.number = decided.status, dict(decided.directives), decided.status.rounds
        for action in decided.actions:
            match action:
                case CreatePod(index, incarnation, avoid):
                    assert all((p.index, p.incarnation) != (index, incarnation) for p in self.pods.values())
                    self._create(index, incarnation, avoid)
                case DeletePod(_, uid, _):
                    self._set(self.pods[uid], deleting=True)
                case FillDesired(value):
                    self._spec(nodes=self.spec.nodes.model_copy(update={"desired": value}))
                case DeleteJob():
                    raise AssertionError("no time to live was asked for")
                case _:
                    self.children = True

    # --- the world's mechanics ----------------------------------------------------------------------------------

    def _spec(self, **changes) -> None:
        changed = self.spec.model_copy(update=changes)
        if changed != self.spec:
            self.spec = changed
            self.job = dataclasses.replace(self.job, generation=self.job.generation + 1)

    def _create(self, index: int, incarnation: int, avoid: tuple[str, ...]) -> None:
        uid = f"{index}-{incarnation}"
        self.pods[uid] = PodView(
            name=f"j-{index}-{incarnation}", namespace="d", uid=uid, job="j", index=index, incarnation=incarnation,
            phase="Pending", ready=False, node="", deleting=False, ip="", reason="", message="", exit_code=None,
            created="", scheduled=False, unschedulable_message="", owner="job-uid", avoids=avoid,
        )  # fmt: skip

    def _obey(self, pod: PodView) -> None:
        directive = self.directives.get(pod.uid)
        known = self.agents.get(pod.uid)
        report = known.report if known else None
        if report and report.leaving:
            if report.state == "stopped":
                self._set(pod, phase="Failed", reason="Error", exit_code=143)
                self._agent(pod, connected=False, detail="the connection ended")
            else:
                self._report(pod, state="stopped", store_port=0)
        elif directive and directive.action == "stop":
            self._set(pod, phase="Succeeded" if report and report.state == "succeeded" else "Failed")
            self.agents.pop(pod.uid, None)
        elif directive and directive.check and report and directive.check.attempt > report.preflight.attempt:
            self._measure(pod, directive.check)
        elif report is None or (directive and directive.action == "wait" and report.state != "joining"):
            self._report(pod, state="joining", store_port=self._port())
        elif directive and directive.action == "save" and report.state == "running":
            self._save(pod)
        elif directive and directive.round and directive.round.number > report.round:
            self._report(pod, state="running", round=directive.round.number, store_port=0, failure=None, progress=None)
        elif not known.connected:
            self._report(pod)

    def _measure(self, pod: PodView, check: Check) -> None:
        assert check.neighbour is None or check.neighbour.pod != pod.name
        speed = 0.1 if pod.uid in self.slow else 1.0
        self._report(pod, preflight=Preflight(check.attempt, matmul=speed, memory=speed, port=1))

    def _save(self, pod: PodView) -> None:
        """Leave if the state could be saved, which takes all members, else say why not and train on."""
        if self.storage_works:
            self.saved = self.status.progress.step if self.status.progress else self.saved
            self._report(pod, state="joining", store_port=self._port(), progress=None)
        else:
            self._trains(pod, self.status.progress.step if self.status.progress else 0)

    def _trains(self, pod: PodView, step: int) -> None:
        said = None
        if self.durable:
            error = "" if self.storage_works else "no space left on device"
            said = Checkpoints(self.saved, error=error, error_reason=error and names.REASON_STORAGE_FULL)
        progress = Progress(pod.index, self.number, step=step, max_steps=100, step_seconds=1.0, checkpoints=said)
        progress = dataclasses.replace(progress, spent=self._spent(step))
        uids = [member.uid for member in self.status.round.members] if self.status.round else []
        rank = uids.index(pod.uid) if pod.uid in uids else 0
        self._report(pod, progress=progress, paces=(Pace(rank, 9.0 if pod.index == self.straggler else 5.0, 10.0),))

    def _spent(self, step: int) -> Spent | None:
        """Where its time went, up to half a second ago, in a round that took five seconds to begin."""
        if not self.accounts or not self.status.round:
            return None
        ago = max(0.0, self.now - 0.5 - seconds(self.status.round.started_at))
        first = min(step, self.status.best_step)
        return Spent(
            step - first, loading=min(ago, 5.0), stepping=max(0.0, ago - 5.0) * 0.75, data=max(0.0, ago - 5.0) / 4
        )

    def _report(self, pod: PodView, **changes) -> None:
        known = self.agents.get(pod.uid)
        blank = Report("d/j", pod.name, pod.uid, pod.index, pod.incarnation, "10.0.0.1", "joining")
        blank = dataclasses.replace(blank, preflight=Preflight(port=1) if self.checks else None)
        report = dataclasses.replace(known.report if known else blank, **changes)
        self.agents[pod.uid] = AgentView(pod.uid, True, 0.0, "", report)

    def _agent(self, pod: PodView, **changes) -> None:
        self.agents[pod.uid] = dataclasses.replace(self.agents[pod.uid], **changes)

    def _set(self, pod: PodView, **changes) -> None:
        self.pods[pod.uid] = dataclasses.replace(pod, **changes)

    def _vanish(self, pod: PodView) -> None:
        del self.pods[pod.uid]
        self.agents.pop(pod.uid, None)

    def _port(self) -> int:
        self.born += 1
        return 30000 + self.born

    def _pick(self, data, *phases: str) -> PodView | None:
        there = [pod for pod in self.pods.values() if pod.phase in phases and not pod.deleting]
        return data.draw(st.sampled_from(there)) if there else None

    def _running(self) -> list[PodView]:
        return [
            pod
            for pod in self.pods.values()
            if (known := self.agents.get(pod.uid))
            and known.report
            and known.report.state == "running"
            and known.report.round == self.number
        ]

    def _in_round(self, data) -> list[PodView]:
        running = self._running()
        return [data.draw(st.sampled_from(running))] if running else []


World.TestCase.settings = settings(max_examples=150, stateful_step_count=40, suppress_health_check=list(HealthCheck))
TestWorld = World.TestCase
