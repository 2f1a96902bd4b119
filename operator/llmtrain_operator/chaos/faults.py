"""Every fault that can be done to a job, and what a job needs in order to live through it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Takes = Literal["nothing", "worker", "member"]
"""What is lost with it: a member takes its memory along."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`does`: in words, of one member. `spends`: it uses up one of recovery.maxRestarts. `everyone`: it is done to all
    members at once."""

    name: str
    does: str
    takes: Takes
    spends: bool = False
    everyone: bool = False

    @property
    def ends_round(self) -> bool:
        """Whether somebody has to notice it."""
        return self.takes != "nothing"


_KNOWN: Final = (
    Fault("kill-worker", "SIGKILL to a worker", "worker", spends=True),
    Fault("kill-workers", "SIGKILL to a worker of every member at once", "worker", spends=True, everyone=True),
    Fault("freeze-worker", "SIGSTOP to a worker", "worker"),
    Fault("kill-zygote", "SIGKILL to the zygote, with which its workers die", "worker", spends=True),
    Fault("corrupt-snapshot", "a bit of each of its own snapshots flipped, a worker killed", "worker", spends=True),
    Fault("kill-agent", "SIGKILL to the agent, with which its pod ends", "member"),
    Fault("freeze-agent", "SIGSTOP to the agent: it falls silent while its workers train", "member"),
    Fault("kill-pod", "its pod ended without grace", "member"),
    Fault("fill-memory", "what is free of its memory for snapshots taken, for a while", "nothing"),
    Fault("power-off", "its node's power cut, and switched on again after a while", "member"),
    Fault("partition", "its node's network cut for a while", "member"),
    Fault("slow-network", "its node's network slowed down for a while", "nothing"),
    Fault("kill-operator", "all processes of the leading operator killed, and its pod deleted", "nothing"),
)
FAULTS: Final = {fault.name: fault for fault in _KNOWN}
"""By name, the mildest first."""
