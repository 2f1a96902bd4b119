"""Workers that leave their round by themselves: how they are asked to, and which exits are no failures. Pure.

The reference trainer takes SIGUSR1 for "save, then leave": it goes on training for as long as saving fails, so nothing
but the operator's next word limits its time. Its workers end as one: they also leave when one on another member was
told to stop. A script of the user's knows nothing of that; it gets the SIGTERM and the grace period that an end of its
pod would give it.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass

from llmtrain_operator.contract import names


@dataclass(frozen=True, slots=True)
class Parting:
    """How the workers of a round may end before they are done. `deadline`: when their time is up, None: never."""

    signal: signal.Signals
    deadline: float | None

    @classmethod
    def begin(cls, reference: bool, now: float, grace: float) -> Parting:
        """For the reference trainer, or for a script of the user's that has `grace` seconds from `now`."""
        return cls(signal.SIGUSR1, None) if reference else cls(signal.SIGTERM, now + grace)

    def excuses(self, code: int) -> bool:
        """Whether a worker with this exit code left as asked; one that does not handle the signal dies of it."""
        return code in (names.EXIT_STOPPED, -self.signal)

    def over(self, exits: Mapping[int, int | None], now: float) -> bool:
        """Whether the workers have left or their time is up. `exits` by local rank; None: still there.

        All 0 after SIGUSR1 is the job's own end, which came first. After SIGTERM it tells nothing: many scripts save
        and exit with 0.
        """
        if self.deadline is not None and now >= self.deadline:
            return True
        codes = list(exits.values())
        left = all(code == 0 or (code is not None and self.excuses(code)) for code in codes)
        return left and (self.signal == signal.SIGTERM or any(codes))
