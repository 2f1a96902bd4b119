"""What this worker says of checkpoints: to its agent, and on rank 0 in the job's log. From any thread."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any, Final

from llmtrain_operator.contract import wire
from llmtrain_trainer.checkpoint.accord import Outcome
from llmtrain_trainer.errors import TrainerError
from llmtrain_trainer.progress import Reporter

_MAX_ERROR: Final = 1_000


class Teller:
    """Keeps `wire.Progress.checkpoints` of a worker. `speaks`: whether it writes to the log, for all."""

    def __init__(self, reporter: Reporter, speaks: bool) -> None:
        self._reporter, self._speaks = reporter, speaks
        self._lock = threading.Lock()
        self._told = wire.Checkpoints()

    def tell(self, **changes: Any) -> None:
        """Change the named fields of `wire.Checkpoints`."""
        with self._lock:
            self._told = dataclasses.replace(self._told, **changes)
            self._reporter.update(checkpoints=self._told)

    def say(self, line: str) -> None:
        """A line of the log."""
        if self._speaks:
            print(line, flush=True)

    def trouble(self, error: TrainerError) -> None:
        """The storage fails, outside of a save."""
        self.say(f"checkpoints: {error}")
        self.tell(error=str(error)[:_MAX_ERROR], error_reason=error.reason)

    def ended(self, outcome: Outcome) -> None:
        """A save is over."""
        said = {"error": outcome.message[:_MAX_ERROR], "error_reason": outcome.reason}
        if not outcome.committed:
            self.tell(failed_step=outcome.step, **said)
            self.say(f"checkpoint of step {outcome.step} failed: {outcome.message}")
            return
        self.tell(step=outcome.step, save_seconds=outcome.seconds, size=outcome.size, failed_step=None, **said)
        self.say(
            f"checkpoint of step {outcome.step} saved: {outcome.size / 1e6:,.1f} MB in {outcome.seconds:.2f} s, of "
            f"which training stood still for {self._told.stall_seconds or 0.0:.3f} s"
        )
        if outcome.message:
            self.say(outcome.message)
