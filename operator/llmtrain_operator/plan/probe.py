"""Pods beyond those that are wanted, made to see whether the scheduler has nodes for them.

Only the scheduler knows all that counts: quotas, affinities, what others have claimed, and whether an autoscaler of
nodes will bring one. So a job that would gain from more members asks for them, and takes them back if they get no
node in time. A pod that waits takes nothing and holds up nobody: the round goes on. Those that get nodes are wanted
then, and are members like any others.
"""

from __future__ import annotations

from typing import Any, Final

from llmtrain_operator import podset
from llmtrain_operator.api import AutoscaleStatus, ProbeRefusedStatus, ProbeStatus
from llmtrain_operator.conditions import seconds, timestamp
from llmtrain_operator.plan.draft import ANNOUNCED, Draft
from llmtrain_operator.state import PodView

PATIENCE: Final = 30.0
"""Seconds for a node where there seems to be room already: schedulers take one or two."""
LONG_PATIENCE: Final = 300.0
"""The same where there is none yet: an autoscaler of nodes sees pods that wait, and takes minutes."""
SETTLING: Final = 3.0
"""Seconds that the first of several are kept waiting for the others, so that the job grows once."""
AGAIN: Final = 300.0
"""Seconds until a probe that was in vain is repeated although there is no more room than there was."""
LONG_AGAIN: Final = 3600.0
"""The same where there seems to be no room at all."""


def usable(run: Draft) -> list[PodView]:
    """The pods that count: those being deleted or given up do not."""
    gone = run.given_up
    return [pod for pod in run.observed.pods if pod.usable and pod.uid not in gone]


def placed(run: Draft) -> int:
    """Pods with nodes, less those that are to be spares."""
    return max(0, sum(pod.scheduled for pod in usable(run)) - run.spec.nodes.spares)


def askable(run: Draft, state: AutoscaleStatus, most: int) -> int:
    """How many more members may be asked for now, `most` at most."""
    room = run.observed.room
    if state.refused is not None:
        wait = seconds(state.refused.time) + (LONG_AGAIN if room == 0 else AGAIN) - run.now
        if wait > 0 and not (room or 0) > state.refused.room:
            run.wake_in(wait)
            return 0
    if room:
        return min(room, most)
    return most if room is None or _may_wait(run) else 0


def _may_wait(run: Draft) -> bool:
    """Whether a pod may wait for a node that is not there yet: not one that the scheduler would make room for by
    ending others' pods."""
    return all(pod.priority <= 0 for pod in run.observed.pods)


def waits(run: Draft, state: AutoscaleStatus, proven: int) -> bool:
    """Whether the probe is still to be waited for; `proven`: how many of its pods have nodes."""
    assert state.probe is not None
    since = run.now - seconds(state.probe.since)
    if since < ANNOUNCED:
        run.wake_in(ANNOUNCED - since)
        return True
    if proven >= run.probing:
        return False
    hopeless = all(podset.hopeless(pod) for pod in usable(run) if not pod.scheduled)
    patience = LONG_PATIENCE if run.observed.room == 0 else PATIENCE
    if proven:
        patience = 0.0 if hopeless and len(usable(run)) >= run.wanted + run.probing else SETTLING
    if since < patience:
        run.wake_in(patience - since)
        return True
    return False


def outdated(run: Draft, state: AutoscaleStatus) -> bool:
    """Whether the probe waited for a node that was not there yet, and there is room now: schedulers look again at pods
    that they could not place after up to ten seconds, and at new ones at once."""
    room, known = run.observed.room, state.probe.room if state.probe else None
    return known == 0 and room is not None and room > 0


def begun(run: Draft, members: int) -> dict[str, Any]:
    """The status of a new probe."""
    return {"probe": ProbeStatus(members=members, since=timestamp(run.now), room=run.observed.room)}


def over(run: Draft, *, in_vain: bool) -> dict[str, Any]:
    """The status without a probe."""
    refused = ProbeRefusedStatus(room=run.observed.room or 0, time=timestamp(run.now)) if in_vain else None
    return {"probe": None, "refused": refused}


def eased(run: Draft, state: AutoscaleStatus) -> dict[str, Any]:
    """What changes when there is less room than at the last probe in vain: the next node is news."""
    room, refused = run.observed.room, state.refused
    if refused is None or room is None or room >= refused.room:
        return {}
    return {"refused": refused.model_copy(update={"room": room})}
