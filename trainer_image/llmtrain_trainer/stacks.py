"""A worker shows its stack to whoever asks, also while it hangs in a call that never returns.

The agent asks by a signal; the answer is written by faulthandler, in C, whatever holds the interpreter.
"""

from __future__ import annotations

import faulthandler
import os

from llmtrain_operator.contract import names


def offer() -> None:
    """From now on answer. Does nothing where nobody would ask."""
    if path := os.environ.get(names.ENV_STACK_FILE):
        # Never closed; written at its end, because the agent empties it before it asks.
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        faulthandler.register(names.SIGNAL_STACK, file, all_threads=True)
