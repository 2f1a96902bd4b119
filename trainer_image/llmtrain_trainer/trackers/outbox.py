"""Rank 0's end of one backend: its process, what it has not kept yet, and whether it is well.

Never waits, but in `close`: points go into a socket that takes them or does not. A process that ends, or says nothing
for `patience` while it owes something, is killed and started again after a pause; it then gets all that was not kept,
and passes over what the record has. Limit: beyond `MOST` points that are not kept the oldest is lost, and counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from llmtrain_trainer.trackers.process import END, MAX_MESSAGE

MOST: Final = 10_000
PATIENCE: Final = 120.0
"""Seconds without a word until a process counts as hanging; imports from a slow volume take long."""
_FIRST_PAUSE: Final = 5.0
_LAST_PAUSE: Final = 300.0
_POLL: Final = 0.02


class Outbox:
    """`name`: the backend's. `command`: what is started, with the socket's number and this process's id behind it."""

    def __init__(self, name: str, command: Sequence[str] = (), patience: float = PATIENCE) -> None:
        self.name = name
        self.kept = 0
        """The newest step that the record is known to have."""
        self.heard = False
        """Whether the process that runs has said that it is ready."""
        self.error, self.reason = "", ""
        """What is wrong, and in a word; empty: nothing."""
        self._command = tuple(command) or (sys.executable, "-m", "llmtrain_trainer.trackers.process", name)
        self._patience = patience
        self._points: deque[tuple[int, str]] = deque()  # not kept yet
        self._sent = 0  # so many of them
        self._lost = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._heard = 0.0
        self._failures, self._retry_at = 0, 0.0

    def add(self, step: int, text: str) -> None:
        """Take a point; steps ascend."""
        self._points.append((step, text))
        if len(self._points) > MOST:
            self._points.popleft()
            self._sent = max(0, self._sent - 1)
            self._lost += 1

    def pump(self, now: float) -> None:
        """Send what can be sent, hear what was said. `now`: seconds of a monotonic clock."""
        if self._link is None:
            if self._points and now >= self._retry_at:
                self._start(now)
            return
        self._listen(now)
        self._send()
        if self._link is not None and not self._points:
            self._heard = now  # it owes nothing
        elif self._link is not None and now - self._heard > self._patience:
            self._fail(now, "TrackerHangs", f"it has said nothing for {self._patience:g} s")

    def close(self, limit: float) -> None:
        """Have everything kept and the run closed, within `limit` seconds, or give up."""
        end = time.monotonic() + limit
        told = False
        while self._link is not None and time.monotonic() < end:
            self.pump(time.monotonic())
            if not told and self._link is not None and self._sent == len(self._points):
                told = self._put(END)
            time.sleep(_POLL)
        if self._link is not None or self._points:
            self.reason = self.reason or "TrackerSlow"
            self.error = self.error or f"the last {len(self._points)} points were not kept within {limit:g} s"
        self.end()

    def end(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._link is not None:
            self._link.close()
        self._process = self._link = None

    @property
    def trouble(self) -> str:
        """All that is wrong, in words; empty: nothing."""
        lost = f"{self._lost} points were lost" if self._lost else ""
        return "; ".join(filter(None, (self.error, lost)))

    def _start(self, now: float) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = theirs.fileno()
            try:
                self._process = subprocess.Popen(
                    [*self._command, str(number), str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,  # libraries greet
                    pass_fds=[number],
                )
            except OSError as error:
                ours.close()
                self._fail(now, "TrackerFailed", f"its process could not be started: {error}")
                return
        self._link, self._heard, self._sent, self.heard = ours, now, 0, False

    def _send(self) -> None:
        # Not the whole deque each time: what is sent lies before what is not.
        while self._sent < len(self._points) and self._put(self._points[self._sent][1]):
            self._sent += 1

    def _put(self, text: str) -> bool:
        """Whether the socket took it."""
        if self._link is None:
            return False
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            self._link.send(text.encode(), socket.MSG_DONTWAIT)
            return True
        return False

    def _listen(self, now: float) -> None:
        while self._link is not None:
            try:
                word = self._link.recv(MAX_MESSAGE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionResetError:
                word = b""
            if not word:
                self._ended(now)
                return
            self._heard = now
            self._take(json.loads(word))

    def _take(self, word: dict[str, Any]) -> None:
        if "error" in word:
            self.error, self.reason = str(word["error"]), str(word["reason"])
            return
        self.heard = True
        self.kept = max(self.kept, int(word["kept"]))
        while self._points and self._points[0][0] <= self.kept:
            self._points.popleft()
            self._sent = max(0, self._sent - 1)
            self._failures = 0
        if not self._failures:
            self.error = self.reason = ""

    def _ended(self, now: float) -> None:
        """The process is gone: because all is done, or else it is a failure, with its last words."""
        code = self._process.wait() if self._process else 0
        if code == 0 and not self._points:
            self.end()
        else:
            self._fail(now, self.reason or "TrackerFailed", self.error or f"its process ended with status {code}")

    def _fail(self, now: float, reason: str, error: str) -> None:
        self.end()
        self._failures += 1
        pause = min(_LAST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self._failures - 1, 10))
        self._retry_at = now + pause if reason != "Fenced" else float("inf")
        self.reason, self.error = reason, error
