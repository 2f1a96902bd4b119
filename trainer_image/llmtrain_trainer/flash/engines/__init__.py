"""Engines: ways to keep a training state in memory, behind one interface, so that they can be compared and exchanged.

`native` is ours (`flash.snapshots`); `dlrover` is DLRover's flash checkpoint, an optional extra with an environment of
its own (`requirements/dlrover.txt`). An engine is made for one worker's state in one round. It keeps the newest step
where another process of the same pod finds it; what else it survives is the engine's own promise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Saved:
    """What became of a save. `stall_seconds`: training stood still. `put_off`: why nothing was saved, "" if it was."""

    stall_seconds: float
    put_off: str = ""


@dataclass(frozen=True, slots=True)
class Restored:
    """The step that the state is of now, and the `training` that was saved with it."""

    step: int
    training: dict[str, Any]


class Engine(Protocol):
    """One worker's snapshots. All workers call the same methods at the same step boundaries.

    What an engine cannot do is raised as `TrainerError`; the message names the limit.
    """

    def save(self, step: int, training: dict[str, Any]) -> Saved:
        """Keep the state of `step`, > 0, and `training` (JSON: where training stands) with it.

        The state may be changed once this returns.
        """

    def wait(self, timeout: float) -> None:
        """Return when the last save is as safe as the engine can make it. Raises after `timeout` seconds."""

    def load(self) -> Restored | None:
        """Make the state what was saved last; None if there is nothing. Collective, and before the first save.

        Nothing restored shares memory with the snapshot.
        """

    def close(self) -> None:
        """Give back what this worker holds. Snapshots stay as long as the process that keeps them."""
