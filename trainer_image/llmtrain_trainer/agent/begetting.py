"""How a pod's zygote comes to be: forked from the agent, whose imports it then has, or started anew."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from llmtrain_trainer import zygote as process


class ZygoteProcess(Protocol):
    """As much as is needed of the process that a zygote is."""

    pid: int

    def kill(self) -> None: ...

    def wait(self) -> int: ...


def can_fork() -> bool:
    """Whether a zygote forked from this process would be like one that is started: its output is not buffered, and
    there is nothing here that does not live through a fork."""
    return isinstance(getattr(sys.stdout, "buffer", None), io.RawIOBase) and not process.unfit()


def start(theirs: socket.socket, environment: Mapping[str, str], program: Sequence[str]) -> subprocess.Popen[bytes]:
    """One with imports of its own. `theirs`: its end of the link."""
    arguments = str(theirs.fileno()), str(os.getpid()), *program
    command = [sys.executable, "-u", "-m", "llmtrain_trainer.zygote", *arguments]
    # A session of its own: what is sent to the agent's group is for the agent to pass on.
    return subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], start_new_session=True)


def fork(
    ours: socket.socket, theirs: socket.socket, environment: Mapping[str, str], program: Sequence[str]
) -> ZygoteProcess:
    """One with the imports of this process, and of its files only stdin, stdout, stderr and `theirs`. `ours`: the other
    end of the link, which is closed there."""
    gc.collect()
    gc.freeze()  # as in the zygote: what both have is not to be copied for a look at it
    agent, pid = os.getpid(), os.fork()
    if pid:
        return _Child(pid)
    os.setsid()
    ours.close()  # its number may be another file's later
    number = theirs.detach()
    for other in [int(file.name) for file in Path("/proc/self/fd").iterdir()]:
        if other not in (0, 1, 2, number):
            with contextlib.suppress(OSError):  # that of the listing itself
                os.close(other)
    os.environ.clear()
    os.environ.update(environment)
    if not sys.flags.safe_path:
        sys.path[0] = str(Path.cwd())  # as with `python -m`
    sys.argv = [process.__file__, str(number), str(agent), *program]
    process.main(sys.argv[1:])
    raise SystemExit  # a worker that has done its work


class _Child:
    """A forked zygote."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def kill(self) -> None:
        """If it was not waited for: its number may be another's then."""
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """The exit code."""
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code
