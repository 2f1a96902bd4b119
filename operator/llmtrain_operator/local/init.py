"""The first process of a local pod: it runs the agent, and nothing the pod began outlives it.

Workers are in sessions of their own, so no process group covers them: this process adopts what loses its parent, and
when the agent ends it kills all that is left. SIGTERM goes on to the agent; SIGHUP, which also comes when the process
that made the pod dies, ends everything at once. When this very process gets a SIGKILL only the agent goes with it; the
process that made the pod ends the rest (`leftovers`). Limit: if both get a SIGKILL at once, the rest stays until the
next run of the job. Linux only; standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

_PDEATHSIG: Final = 1
_CHILD_SUBREAPER: Final = 36
_SIGNALS: Final = frozenset({signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})
_LIMIT: Final = 10.0
"""Seconds to wait for what was killed: longer only in uninterruptible sleep, which is beyond help."""


def main(argv: Sequence[str]) -> int:
    """`argv`: the process id of the parent, then the agent's command. Returns the agent's exit code."""
    parent, command = int(argv[0]), list(argv[1:])
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # below nohup SIGHUP is ignored, also by what is begun here
    libc = ctypes.CDLL(None)
    libc.prctl(_CHILD_SUBREAPER, 1)
    libc.prctl(_PDEATHSIG, int(signal.SIGHUP))
    if os.getppid() != parent:
        return 128 + signal.SIGHUP
    agent = os.fork()
    if agent == 0:
        _become(command, libc)
    code = _watch(agent)
    _end_descendants()
    return code


def descendants(root: int, parents: Mapping[int, int]) -> set[int]:
    """All processes under `root`, by a table of process -> parent."""
    found: set[int] = set()
    news = {root}
    while news:
        news = {pid for pid, parent in parents.items() if parent in news} - found
        found |= news
    return found


def living() -> dict[int, int]:
    """Process -> parent for all that run; those which ended and were not yet waited for are left out."""
    table = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state not in ("Z", "X"):
                table[int(stat.parent.name)] = int(parent)
    return table


def _become(command: list[str], libc: ctypes.CDLL) -> None:
    try:
        libc.prctl(_PDEATHSIG, int(signal.SIGKILL))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
    finally:
        os._exit(127)


def _watch(agent: int) -> int:
    """Until the agent has ended, or everything is to end."""
    while True:
        number = signal.sigwait(_SIGNALS)
        if number == signal.SIGHUP:
            return 128 + signal.SIGKILL
        if number in (signal.SIGTERM, signal.SIGINT):
            os.kill(agent, signal.SIGTERM)
        for pid, status in _ended():
            if pid == agent:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code


def _ended() -> list[tuple[int, int]]:
    ended = []
    with contextlib.suppress(ChildProcessError):
        while (one := os.waitpid(-1, os.WNOHANG))[0]:
            ended.append(one)
    return ended


def _end_descendants() -> None:
    deadline = time.monotonic() + _LIMIT
    while (left := descendants(os.getpid(), living())) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
        _ended()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
