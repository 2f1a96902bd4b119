"""Rank 0's end of one backend: its process, what it has not kept yet, and whether it is well.

Never waits, but in `close_all`: points go into a socket that takes them or does not. A process that ends, or says
nothing for `patience` while it owes something, is killed and, once it is gone (which on storage that hangs may take for
ever), started again after a pause; it then gets all that was not kept, and passes over what the record has. Limit:
beyond `MOST` points that are not kept the oldest is lost, and counted.
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
"""Seconds without a word until a process counts as hanging."""
_TO_START: Final = 3
"""So many times that for the first word: imports from a slow volume take minutes."""
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
        self._process: subprocess.Popen[bytes] | None = None  # the last one, which may still be dying
        self._told_end = False
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
            if self._points and now >= self._retry_at and self._is_gone:
                self._start(now)
            return
        self._listen(now)
        self._send()
        limit = self._patience * (1 if self.heard else _TO_START)
        if self._link is not None and not self._points:
            self._heard = now  # it owes nothing
        elif self._link is not None and now - self._heard > limit:
            self._fail(now, "TrackerHangs", f"it has said nothing for {limit:g} s")

    @property
    def closed(self) -> bool:
        """Whether there is no process to wait for: it has ended well, or has failed and would have to be made anew."""
        return self._link is None

    def conclude(self, now: float) -> None:
        """The same as `pump` when no more points will come: the run is to be closed."""
        self.pump(now)
        if self._link is not None and not self._told_end and self._sent == len(self._points):
            self._told_end = self._put(END)

    def give_up(self, limit: float) -> None:
        """What is not kept after `limit` seconds is missing for good."""
        if not self.closed or self._points:
            self.reason = self.reason or "TrackerSlow"
            self.error = self.error or f"the last {len(self._points)} points were not kept within {limit:g} s"
        self.end()

    def end(self) -> None:
        """Have the process ended, whatever it is doing; does not wait for that."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        if self._link is not None:
            self._link.close()
        self._link = None

    @property
    def _is_gone(self) -> bool:
        return self._process is None or self._process.poll() is not None

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
                self._process = None
                self._fail(now, "TrackerFailed", f"its process could not be started: {error}")
                return
        self._link, self._heard, self._sent, self.heard = ours, now, 0, False
        self._told_end = False

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
        """The process is gone, or about to be: because all is done, or else it is a failure, with its last words."""
        if self._told_end and not self._points:
            self.end()
            return
        code = self._process.poll() if self._process else None
        how = "" if code is None else f" with status {code}"
        self._fail(now, self.reason or "TrackerFailed", self.error or f"its process has ended{how}")

    def _fail(self, now: float, reason: str, error: str) -> None:
        self.end()
        self._failures += 1
        pause = min(_LAST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self._failures - 1, 10))
        self._retry_at = now + pause if reason != "Fenced" else float("inf")
        self.reason, self.error = reason, error


def close_all(outboxes: Sequence[Outbox], limit: float) -> None:
    """Have everything kept and all runs closed, at the same time, within `limit` seconds, or give up."""
    end = time.monotonic() + limit
    for outbox in outboxes:
        outbox.conclude(time.monotonic())
    while not all(outbox.closed for outbox in outboxes) and time.monotonic() < end:
        time.sleep(_POLL)
        for outbox in outboxes:
            if not outbox.closed:
                outbox.conclude(time.monotonic())
    for outbox in outboxes:
        outbox.give_up(limit)
