"""Which nodes a job keeps off for a while, because they fail it again and again.

Pure. What speaks against a node is counted, and one that stands out among those that the job uses is avoided. Its
faults are told from the job's own by comparison alone: where all nodes fail alike, or there is but one, it is not the
node. What a node did is forgotten after a day; until then every few failures double the time for which it is avoided.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Set
from typing import Final

from llmtrain_operator.api import AvoidedNodeStatus, NodeFailureStatus
from llmtrain_operator.conditions import seconds, timestamp
from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Failure

THRESHOLD: Final = 3
"""Failures within `WINDOW` that make a node stand out. Two may be a reboot and what came of it; three within an hour do
not happen to a sound machine."""
WINDOW: Final = 3600.0
MEMORY: Final = 24 * 3600.0
FIRST: Final = 3600.0
LONGEST: Final = 24 * 3600.0
SHARE: Final = 4
"""Of so many nodes that the job uses one may be avoided at a time; of fewer, one all the same."""
MOST: Final = 16
KEPT: Final = 64
_HARDWARE: Final = frozenset({signal.SIGBUS, signal.SIGSEGV, signal.SIGILL})

Failures = tuple[NodeFailureStatus, ...]
"""The newest last."""
Avoided = tuple[AvoidedNodeStatus, ...]


def speaks_against_node(cause: Failure) -> bool:
    """Whether a worker's end may be its machine's doing: it hung, or died of what broken memory or devices lead to. An
    exception is the code's, and SIGKILL comes from whoever is short of memory."""
    return cause.reason == names.REASON_HANG or (cause.reason == names.REASON_KILLED and cause.signal in _HARDWARE)


def noted(failures: Failures, node: str, reason: str, now: float) -> Failures:
    """With one more of this node; those of long ago are forgotten."""
    recent = tuple(one for one in failures if now - seconds(one.time) < MEMORY)
    return (*recent, NodeFailureStatus(node=node, reason=reason, time=timestamp(now)))[-KEPT:]


def forgotten(failures: Failures, nodes: Set[str]) -> Failures:
    """Without those of these nodes."""
    return tuple(one for one in failures if one.node not in nodes)


def stands_out(failures: Failures, node: str, used: Set[str], now: float) -> bool:
    """Whether the node has failed often of late, and more than twice as often as the others `used` did on average."""
    counts = Counter(one.node for one in failures if now - seconds(one.time) < WINDOW)
    others = (used | counts.keys()) - {node}
    typical = sum(counts[other] for other in others) / len(others) if others else float("inf")
    return counts[node] >= THRESHOLD and counts[node] > 2 * typical


def bearable(avoided: Avoided, used: Set[str]) -> bool:
    """Whether one more of the nodes `used` may be avoided."""
    return len(avoided) < min(MOST, max(1, len(used) // SHARE))


def avoiding(avoided: Avoided, failures: Failures, node: str, reason: str, now: float) -> Avoided:
    """With this node, from now on, for as long as its failures deserve."""
    known = sum(one.node == node for one in failures)
    length = min(LONGEST, FIRST * 2.0 ** max(0, known // THRESHOLD - 1))
    made = AvoidedNodeStatus(node=node, reason=reason, failures=known, until=timestamp(now + length))
    return (*(one for one in avoided if one.node != node), made)


def in_force(avoided: Avoided, now: float) -> Avoided:
    """Those whose time is not over."""
    return tuple(one for one in avoided if seconds(one.until) > now)
