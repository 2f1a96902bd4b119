"""What this worker was asked to do by a signal; obeyed at the next step boundary, by all workers at the same one."""

from __future__ import annotations

import signal


class Wishes:
    """`stop`: SIGTERM came: end, saved if storage can be had. `leave`: SIGUSR1 came: end once the state is saved."""

    def __init__(self) -> None:
        self.stop = False
        self.leave = False

    def listen(self) -> None:
        """From now on the signals wait for the boundary; until then there is nothing to end properly."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGUSR1, self._on_signal)

    def _on_signal(self, number: int, _: object) -> None:
        self.stop |= number == signal.SIGTERM
        self.leave |= number == signal.SIGUSR1
