"""Processes that outlived their pod, found by the token file in their environment.

Normally a pod's first process takes everything with it; this is for when that one gets a SIGKILL, which it cannot
answer. Linux only. Limit: a process that cleared its environment is not recognised.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Final

from llmtrain_operator.contract import names

_LIMIT: Final = 5.0
"""Seconds until what was killed must be gone: longer only in uninterruptible sleep, which is beyond help."""


def end_leftovers(tokens: Path) -> int:
    """Kill the processes of the pod whose token file is `tokens`, or of all whose files are in that directory.

    Returns how many there were. Takes a few milliseconds if there are none.
    """
    ended: set[int] = set()
    deadline = time.monotonic() + _LIMIT
    while (found := processes(tokens)) and time.monotonic() < deadline:
        ended |= found
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return len(ended)


def processes(tokens: Path) -> set[int]:
    """Those of the pod whose token file is `tokens`, or of all whose files are in that directory; not this one."""
    mark = f"{names.ENV_TOKEN_FILE}={tokens}".encode()
    wanted = mark + (b"/" if tokens.is_dir() else b"\0")
    found = set()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # another user's, or just gone
            if wanted in environment.read_bytes() + b"\0":
                found.add(int(environment.parent.name))
    return found - {os.getpid()}
