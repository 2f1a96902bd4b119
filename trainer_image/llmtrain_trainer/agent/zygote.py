"""The agent's side of its pod's zygote (`llmtrain_trainer.zygote`), from which workers are forked, imports and all.

It imports while the pod waits for its first round. The first one is forked from the agent itself as soon as that has
torch, so that both have it for the time and the memory of one; any later one is started anew. No torch here. For the
agent's main thread alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from llmtrain_trainer.agent.begetting import ZygoteProcess, can_fork, fork, start

OFF: Final = "off"
_ANSWER: Final = 30.0
"""Seconds until a zygote that does not answer counts as dead."""


class NotForked(Exception):  # noqa: N818 - it says what happened
    """The zygote is gone, or refuses to fork; the message says why."""


class Zygote:
    """`ready`: it has imported everything. `gone`: it has ended, and its workers with it."""

    def __init__(self, environment: Mapping[str, str], *program: str, of_this: bool = False) -> None:
        """Start one, with this environment, for workers that run `program`: "-m" and a module, or a script.

        `of_this`: fork it from this process if that can be done, with all that was imported here. What it then has
        beside the imports is this process': nothing may have been set up yet, a handler of signals or a log for one.
        """
        self._environment, self._program = dict(environment), program
        self._link, theirs = socket.socketpair()
        with theirs:
            if of_this and can_fork():
                self._process: ZygoteProcess = fork(self._link, theirs, self._environment, program)
            else:
                self._process = start(theirs, self._environment, program)
        self._heard = bytearray()
        self._answers: list[dict[str, Any]] = []
        self._codes: dict[int, int] = {}
        self.ready = self.gone = False

    def fork(self, arguments: Sequence[str], environment: Mapping[str, str], output: tuple[int, int]) -> Forked:
        """A worker with these arguments, this environment, and files for its stdout and stderr. Raises `NotForked`."""
        asked = json.dumps({"arguments": list(arguments), "environment": dict(environment)}).encode()
        try:
            socket.send_fds(self._link, [len(asked).to_bytes(4, "little")], output)
            self._link.sendall(asked)
        except OSError as error:
            raise NotForked(f"the zygote is gone: {error}") from error
        answer = self._answer()
        if "refused" in answer:
            raise NotForked(f"the zygote does not fork: {answer['refused']}")
        return Forked(self, int(answer["started"]))

    def listen(self, timeout: float = 0.0) -> None:
        """Take in what it says; waits for something at most `timeout` seconds."""
        if self.gone or not select.select([self._link], [], [], timeout)[0]:
            return
        with contextlib.suppress(ConnectionResetError):
            heard = self._link.recv(2**16)
            self._heard += heard
            if heard:
                self._understand()
                return
        self.gone = True
        self._process.wait()  # it closes its end by ending

    def code(self, pid: int) -> int | None:
        """The exit code of a worker, None while it lives. They die with the zygote."""
        return self._codes.get(pid, -signal.SIGKILL if self.gone else None)

    def again(self) -> Zygote | None:
        """Another one in its place; None if this one was never ready: the next would not be either."""
        return Zygote(self._environment, *self._program) if self.ready else None

    def close(self) -> None:
        """End it."""
        self._link.close()
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        end = time.monotonic() + _ANSWER
        while not self._answers and not self.gone and time.monotonic() < end:
            self.listen(end - time.monotonic())
        if not self._answers:
            if not self.gone:  # what it may still start must not live
                self._process.kill()
            raise NotForked("the zygote has ended" if self.gone else f"the zygote did not answer in {_ANSWER:.0f} s")
        return self._answers.pop(0)

    def _understand(self) -> None:
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            said = json.loads(line)
            if "ended" in said:
                self._codes[said["ended"]] = said["code"]
            elif "ready" in said:
                self.ready = True
            else:
                self._codes.pop(said.get("started", 0), None)  # of an earlier one that had this number
                self._answers.append(said)


class Forked:
    """A forked worker, as much of a `subprocess.Popen` as torch's elastic agent uses."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self._zygote, self.pid = zygote, pid

    @property
    def returncode(self) -> int | None:
        """As far as it is known."""
        return self._zygote.code(self.pid)

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it lives."""
        self._zygote.listen()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises `subprocess.TimeoutExpired`."""
        end = time.monotonic() + (float("inf") if timeout is None else timeout)
        while (code := self.returncode) is None:
            left = end - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout or 0.0)
            self._zygote.listen(min(left, 1.0))
        return code

    def send_signal(self, number: int) -> None:
        """If it lives."""
        if self.poll() is None:
            os.kill(self.pid, number)
