"""Where the agent's process begins. It can be stopped from its first moment, though torch takes seconds to import.

As pid 1 of a pod it would otherwise ignore SIGTERM until its own handler stands, and a pod that is deleted while it
starts would linger for its whole grace period.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn


def main() -> int:
    """Entry point of `llmtrain-agent`; returns the exit code."""
    signal.signal(signal.SIGTERM, _leave)
    from llmtrain_trainer.agent.main import main as supervise

    return supervise()


def _leave(number: int, _: FrameType | None) -> NoReturn:
    # There are no workers yet, and an exception could be swallowed by whatever is being imported.
    os._exit(128 + number)
