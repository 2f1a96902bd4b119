"""How many members are wanted where `spec.autoscale` is enabled: the policy of `autoscale`, applied to a live job.

The target is status.targetNodes, between nodes.min and nodes.desired; the spec is not written. What the policy weighs
is what the job's own steps have shown (`learning`) and the room that is proven: pods that have nodes. Where more room
seems to be, and would pay, it is asked for by a probe. Everything else follows from the target as from an edit of
nodes.desired: pods, the step boundary, the next round. Decisions wait while a round is formed, ended or recovered.
"""

from __future__ import annotations

from typing import Any, Final

from llmtrain_operator.api import AutoscaleStatus, CapacityLossStatus, ScalingStatus
from llmtrain_operator.autoscale import Capacity, Decision, Limits, Loss, Situation, decide, limits
from llmtrain_operator.autoscale.records import OWN_ACCORD
from llmtrain_operator.conditions import find, seconds, timestamp
from llmtrain_operator.plan import probe
from llmtrain_operator.plan.draft import ANNOUNCED, Draft
from llmtrain_operator.plan.learning import learn, prior, samples
from llmtrain_operator.plan.resize import held

LOSS_PATIENCE: Final = 30.0
"""Seconds that a member without a node counts as about to be back: it is being replaced, or its node restarts."""
YIELD_PATIENCE: Final = 30.0
"""Seconds in which others are to take the nodes that were given up for them, before more are."""
GUESSED_PAUSE: Final = 5.0
"""Seconds that training is taken to stand still for a change of size before that was measured."""
_MOST_LOSSES: Final = 16


def steer(run: Draft) -> None:
    """Choose how many members are wanted, and say why."""
    if not run.spec.autoscale.enabled:
        _turned_off(run)
        return
    if run.status.autoscale is None:
        _turned_on(run)
    learn(run)
    if run.round is None:
        _before_the_first(run)
    elif run.trains and run.ending is None:
        _while_it_trains(run)


def _turned_on(run: Draft) -> None:
    """A round that runs keeps its size until there is a reason for another."""
    size = len(run.status.round.members) if run.status.round else None
    run.set(autoscale=AutoscaleStatus(), target_nodes=size)


def _turned_off(run: Draft) -> None:
    if run.status.autoscale is not None:
        run.set(autoscale=None, step_times=None)
        run.condition("Autoscaled", False, "Disabled", "spec.autoscale.enabled is false: nodes.desired is the size")


def _state(run: Draft) -> AutoscaleStatus:
    assert run.status.autoscale is not None
    return run.status.autoscale


def _set(run: Draft, **values: Any) -> None:
    run.set(autoscale=_state(run).model_copy(update=values))


def _before_the_first(run: Draft) -> None:
    """A job that has not trained yet begins with what there is room for, rather than wait for what there is not."""
    if run.status.rounds or run.observed.obstacle is not None:
        return
    room = run.observed.room
    more = run.cap if room is None else probe.placed(run) + room
    _adopt(run, decide(_situation(run, 0, Capacity(more, "nodes", _seems(room))), _limits(run), run.now))


def _while_it_trains(run: Draft) -> None:
    state, size = _state(run), len(run.status.round.members) if run.status.round else 0
    _set(run, started_at=state.started_at or timestamp(run.now), **probe.eased(run, state))
    short, have = probe.placed(run) < run.wanted, _have(run)
    stopped = short or bool(run.observed.claimants)
    proven = have - run.wanted
    anew = proven <= 0 and not stopped and probe.outdated(run, _state(run))
    if _state(run).probe and not (stopped or anew) and probe.waits(run, _state(run), proven):
        return
    decision = _decide(run, size, have - size, "probe", "pods that have nodes")
    if _state(run).probe is not None:
        _set(run, **probe.over(run, in_vain=decision.target <= run.wanted and not anew))
    if decision.target != run.status.target_nodes:
        _adopt(run, decision)
    elif anew:
        run.wake_in(0.0)  # its pods go first
    elif size == run.wanted and have == run.wanted and not run.observed.claimants:
        _look_further(run, size, decision)
    else:
        _say(run, decision)


def _have(run: Draft) -> int:
    """Members that have nodes, or are about to have them again."""
    have, since = probe.placed(run), _state(run).short_since
    if have >= run.wanted:
        _set(run, short_since=None)
        return have
    since = since or timestamp(run.now)
    _set(run, short_since=since)
    left = LOSS_PATIENCE - (run.now - seconds(since))
    if left > 0:
        run.wake_in(left)
        return run.wanted
    return have


def _look_further(run: Draft, size: int, decision: Decision) -> None:
    """All is as it is wanted: see whether more members would pay, and if so, whether they can be had."""
    most = 0 if _given_up(run) else probe.askable(run, _state(run), run.cap - size)
    if most <= 0:
        _say(run, decision)
        return
    hoped = _decide(run, size, most, "nodes", _seems(run.observed.room))
    if hoped.target > size:
        _set(run, **probe.begun(run, hoped.target - size))
        run.wake_in(ANNOUNCED)
    # Where there is no room yet, that there is none is what people should read.
    _say(run, hoped if run.observed.room != 0 else decision)


def _seems(room: int | None) -> str:
    return "" if room is None else f"nodes seem to have room for {room} more"


def _decide(run: Draft, size: int, more: int, source: Any, message: str) -> Decision:
    capacity = Capacity(more, source, message, _claimed(run, size))
    decision = decide(_situation(run, size, capacity), _limits(run), run.now)
    if decision.reason == "CoolingDown" and (changed := _state(run).changed_at):
        run.wake_in(_limits(run).cool_down - (run.now - seconds(changed)))
    if decision.reason in OWN_ACCORD and (why := held(run, shrinks=decision.target < size)):
        return Decision(size, "Resizing", f"{why[1]} ({decision.message})")
    return decision


def _claimed(run: Draft, size: int) -> int:
    """Members that others may have now."""
    return 0 if _given_up(run) else min(run.observed.claimed, size)


def _given_up(run: Draft) -> bool:
    """Whether members were given up for others just now: these are to take them, before more happens."""
    last = _state(run).last
    left = seconds(last.time) + YIELD_PATIENCE - run.now if last and last.reason == "HigherPriority" else 0.0
    if left > 0:
        run.wake_in(left)
    return left > 0


def _limits(run: Draft) -> Limits:
    return limits(run.spec)


def _situation(run: Draft, size: int, capacity: Capacity) -> Situation:
    state, told = _state(run), run.status.progress
    return Situation(
        size=size,
        target=run.status.target_nodes,
        steps_left=max(0, told.max_steps - told.step) if told and told.max_steps else None,
        samples=samples(run.status),
        prior=prior(run.spec),
        capacity=capacity,
        changed_at=seconds(state.changed_at) if state.changed_at else None,
        changed_for="Exploring" if state.last and state.last.reason == "Exploring" else None,
        pause_seconds=GUESSED_PAUSE if state.pause_seconds is None else state.pause_seconds,
        paused_seconds=state.paused_seconds,
        started_at=seconds(state.started_at) if state.started_at else None,
        losses=tuple(Loss(seconds(loss.time), loss.left) for loss in state.losses),
    )


def _adopt(run: Draft, decision: Decision) -> None:
    """Have it so, and tell; if it is so already, say at most why."""
    before = run.status.target_nodes
    if before == decision.target:
        _say(run, decision)
        return
    run.set(target_nodes=decision.target)
    now, state = timestamp(run.now), _state(run)
    changes: dict[str, Any] = {}
    if decision.reason in OWN_ACCORD:
        changes["changed_at"] = now
    if decision.reason == "CapacityLost":
        loss = CapacityLossStatus(time=now, left=decision.target)
        changes["losses"] = (*state.losses, loss)[-_MOST_LOSSES:]
    if run.status.round is not None and before is not None:
        changes["last"] = ScalingStatus(
            time=now,
            from_nodes=len(run.status.round.members),
            to_nodes=decision.target,
            reason=decision.reason,
            message=decision.message,
            predicted_speedup=None if decision.speedup is None else round(decision.speedup, 3),
            restarts=run.status.restarts,
        )
        run.tell("Autoscaled", f"{decision.reason}: {decision.message}{_for_whom(run, decision)}")
    _set(run, **changes)
    _say(run, decision, anew=True)


def _for_whom(run: Draft, decision: Decision) -> str:
    return f" ({', '.join(run.observed.claimants)})" if decision.reason == "HigherPriority" else ""


def _say(run: Draft, decision: Decision, *, anew: bool = False) -> None:
    """Reason and message; the words of a reason that holds on stay, as figures in them change all the time."""
    state, before = _state(run), find(run.status.conditions, "Autoscaled")
    if not anew and state.reason == decision.reason and before is not None and before.status == "True":
        return
    _set(run, reason=decision.reason, message=decision.message)
    run.condition("Autoscaled", True, decision.reason, decision.message)
