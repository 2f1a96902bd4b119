"""How many members a job should have, and why. Pure.

What happened comes first: a job that starts, capacity that is gone, members that a job of higher priority needs, a
range that the user has changed. Then, if the size is measured, whether another would get more done: `outlook` weighs
speed against the pauses that a change costs now and that the loss of the new members may cost later. A change of the
policy's own accord has to gain at least `MARGIN` and what noise may feign, waits for the cool-down, and must fit in the
share of pauses. A size that was only tried may be left as soon as it is measured.

The target never leaves [minimum, cap]. While nothing changes but the noise of step times, targets come to rest.
"""

from __future__ import annotations

from typing import Final

from llmtrain_operator.autoscale import outlook
from llmtrain_operator.autoscale.outlook import Outlook
from llmtrain_operator.autoscale.records import Decision, Limits, Reason, Situation
from llmtrain_operator.autoscale.throughput import measured
from llmtrain_operator.progress import duration

MARGIN: Final = 0.02
"""What a change has to gain beyond its costs, as a share of the present speed."""


def decide(situation: Situation, limits: Limits, now: float) -> Decision:
    """The number of members that the job should have now."""
    if not limits.enabled:
        return Decision(limits.cap, "Disabled", "spec.autoscale.enabled is false: nodes.desired is the size")
    reach = _within(limits, situation.size + situation.capacity.more - situation.capacity.claimed)
    forced = _forced(situation, limits, reach, now)
    if forced is not None:
        return forced
    seen = outlook.look(situation, limits, reach, now)
    wanted = _best(seen)
    if wanted.target == situation.size:
        return wanted
    return _held_back(seen, wanted, now) or wanted


def _within(limits: Limits, members: int) -> int:
    return max(limits.minimum, min(limits.cap, members))


def _forced(situation: Situation, limits: Limits, reach: int, now: float) -> Decision | None:
    """What follows from what happened; None: the job trains at the size that is wanted, and that is measured."""
    size, target, capacity = situation.size, situation.target, situation.capacity
    if size == 0 or target is None:
        return _start(situation, limits, reach, now)
    if target > limits.cap or target < limits.minimum:
        return Decision(_within(limits, target), "OutOfRange", f"the range is {limits.minimum} to {limits.cap} now")
    if target > reach and capacity.claimed:
        return Decision(reach, "HigherPriority", f"jobs of higher priority need {capacity.claimed} of {size} members")
    if target > reach:
        return Decision(reach, "CapacityLost", f"there is room for {reach} of {target} members{_says(situation)}")
    if target != size:
        return Decision(target, "Resizing", f"{size} members train, {target} are wanted")
    if not measured(situation.samples, size):
        return Decision(target, "Measuring", f"too few steps were seen with {size} members to judge them")
    return None


def _start(situation: Situation, limits: Limits, reach: int, now: float) -> Decision:
    """The best size to begin with: no pause is due, as nobody trains. It stays while the members come."""
    best = outlook.fastest(situation, limits, reach, now)
    if situation.size == 0 and situation.target is not None and situation.target == best:
        return Decision(best, "Starting", f"waiting for {best} members")
    return Decision(best, "Starting", f"there is room for {reach} members{_says(situation)}")


def _best(seen: Outlook) -> Decision:
    """The best size by all that is known, were there no cool-down and no share of pauses."""
    here = seen.here
    best = max(seen.others, key=lambda each: each.value, default=None)
    if best is not None and best.value > here.value * (1 + MARGIN + best.doubt):
        reason: Reason = "Growing" if best.members > here.members else "Faster"
        return _change(seen, best.members, reason, f"pause of {duration(seen.pause)} included")
    if not seen.efficient and (fewer := seen.fewer) is not None:
        share = f"{seen.limits.min_efficiency:.0%} of what each of the first {seen.limits.minimum} gives"
        return _change(seen, fewer.members, "Inefficient", f"the last of {here.members} members add less than {share}")
    unsure = max(seen.others, key=lambda each: each.chance, default=None)
    if unsure is not None and unsure.chance > 0:
        return _change(seen, unsure.members, "Exploring", "it was never seen, and finding out is worth two pauses")
    return _stay(seen, best.members if best is not None else None)


def _stay(seen: Outlook, best: int | None) -> Decision:
    size = seen.here.members
    if size == seen.limits.cap:
        return Decision(size, "AtCap", f"{size} members are the most that spec.nodes allows")
    if size == seen.reach:
        return Decision(size, "NoCapacity", f"there is no room for more than {size} members{_says(seen.situation)}")
    return Decision(size, "NotWorthIt", f"another size, such as {best}, would not save more than its pause costs")


def _change(seen: Outlook, members: int, reason: Reason, why: str) -> Decision:
    """From the present size to `members`, with the prediction in the words."""
    speedup = seen.curve.speed(members) / seen.curve.speed(seen.here.members)
    message = f"{seen.here.members} to {members} members: predicted {speedup:.2f}x the speed; {why}"
    return Decision(members, reason, message, speedup)


def _held_back(seen: Outlook, wanted: Decision, now: float) -> Decision | None:
    """What stands against a change of the policy's own accord; None: nothing."""
    situation, limits = seen.situation, seen.limits
    size, changed = situation.size, situation.changed_at
    if changed is not None and now - changed < limits.cool_down and situation.changed_for != "Exploring":
        rest = duration(limits.cool_down - (now - changed))
        return Decision(size, "CoolingDown", f"{rest} more until the next change ({wanted.message})")
    whole = outlook.whole_time(seen, now)
    paused = situation.paused_seconds + situation.pause_seconds
    if paused > limits.max_pause_share * whole:
        share = f"{limits.max_pause_share:.0%} of {duration(whole)}"
        return Decision(size, "PauseShareSpent", f"another pause would make them more than {share} ({wanted.message})")
    return None


def _says(situation: Situation) -> str:
    return f" ({situation.capacity.message})" if situation.capacity.message else ""
