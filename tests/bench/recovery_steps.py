"""When a training step was completed, seen from outside: by the snapshots that appear, or by what the trainer reports.

Neither asks the trainer for anything that it does not do anyway. A snapshot is dated by the file system, which is the
moment when it was published: the step and the copy of its state. A report is dated by its arrival on a socket.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from llmtrain_operator.contract import codec, wire
from llmtrain_trainer.checkpoint.manifest import Damaged, NewerFormat
from llmtrain_trainer.flash import slot

PATIENCE: Final = 240.0
_POLL: Final = 0.004


@dataclass(frozen=True)
class Step:
    """Step `number` was done at `at` (seconds since 1970) in a round of so many workers."""

    at: float
    number: int
    round: int
    workers: int


@dataclass(frozen=True)
class Trial:
    """One fault: seconds from it to the next completed step, or without a step, beyond a step's own time; steps that
    were seen done `again`; of these the committed ones, which were `lost`, where anybody says so; what was said of it.
    """

    seconds: float
    again: int
    lost: int | None = None
    told: str = ""


Trials = list[Trial]


def undisturbed(status: Callable[[], dict[str, Any]], members: int) -> None:
    """Return when all members have trained for a moment and have copies of their state. Raises `TimeoutError`."""
    deadline, since = time.monotonic() + PATIENCE, None
    while since is None or time.monotonic() - since < 1.5:
        now = status()
        if time.monotonic() > deadline:
            raise TimeoutError(f"the job does not train with all members: {now}")
        current, flash = now.get("round") or {}, now.get("flash") or {}
        # What is committed of an earlier round is no copy that this one has made.
        copied = flash.get("round") == current.get("number") and flash.get("committedStep")
        whole = len(current.get("members", ())) == members and not current.get("ending") and copied
        since = (since or time.monotonic()) if whole and now.get("state") == "Running" else None
        time.sleep(0.05)


def recovered(status: Callable[[], dict[str, Any]], number: int) -> tuple[int, str]:
    """Of the incident that the loss of that round began: lost steps, and how it was seen. Raises `TimeoutError`."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        last = (status().get("incidents") or [{}])[-1]
        if (last.get("round"), last.get("outcome")) == (number, "Recovered"):
            return int(last["lostSteps"]), f"{last['reason']} noticed after {last['detectSeconds']:.2f} s"
        time.sleep(0.05)
    raise TimeoutError(f"the incident of round {number} is not on record")


class Steps:
    """Every step as it is seen. `seen` may be read while more come in."""

    def __init__(self) -> None:
        self.seen: list[Step] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="steps", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def until(self, met: Callable[[Step], bool], since: float, what: str) -> Step:
        """The first step after `since` for which `met`, waited for. Raises `TimeoutError`."""
        deadline, looked = time.monotonic() + PATIENCE, 0
        while time.monotonic() < deadline:
            known = len(self.seen)
            for step in self.seen[looked:known]:
                if step.at >= since and met(step):
                    return step
            looked = known
            time.sleep(_POLL)
        raise TimeoutError(f"{what} did not come within {PATIENCE:.0f} s")

    def pace(self, before: float) -> float:
        """Median seconds of a step, of the fifty before that moment."""
        times = [step.at for step in self.seen if step.at <= before][-50:]
        return statistics.median(later - earlier for earlier, later in itertools.pairwise(times))

    def pause(self, after: Step) -> Trial:
        """What a planned change cost, after which `after` is the first step: time, and steps that were done again."""
        before = max((step for step in self.seen if step.round < after.round), key=lambda step: step.at)
        told = f"step {after.number} after {before.number}"
        return Trial(after.at - before.at - self.pace(before.at), self.again(after), told=told)

    def again(self, after: Step) -> int:
        """How many steps were done again in the round that `after` is the first step of."""
        return max(step.number for step in self.seen if step.round < after.round) + 1 - after.number

    def _follow(self) -> None:
        raise NotImplementedError


class Snapshots(Steps):
    """By the heads of snapshots in the stores that `stores` names: directories, which may come and go."""

    def __init__(self, stores: Callable[[], Iterable[Path]]) -> None:
        super().__init__()
        self._stores = stores
        self._marks: dict[Path, int] = {}
        self._best = (0, 0)

    def _follow(self) -> None:
        while not self._over.wait(_POLL):
            found = [step for store in self._stores() for head in store.glob("own-*.head") if (step := self._new(head))]
            for step in sorted(found, key=lambda step: step.at):
                # A step is done when the first worker has it: no other can be further behind than its copy.
                if (step.round, step.number) > self._best:
                    self._best = step.round, step.number
                    self.seen.append(step)

    def _new(self, head: Path) -> Step | None:
        with contextlib.suppress(OSError, Damaged, NewerFormat):
            changed = head.stat().st_mtime_ns
            if self._marks.get(head) == changed:
                return None
            self._marks[head] = changed
            if held := slot.held(head.with_suffix("")):
                edition = held.header.edition
                return Step(changed / 1e9, edition.step, edition.round, edition.world_size)
        return None


class Reports(Steps):
    """By what workers send to the socket at `path`, each `wire.Progress`. A round begins with a worker that loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(0.1)
        self._socket.bind(str(path))
        self._round, self._last = 0, 0

    def _follow(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                self._take(codec.decode(wire.Progress, self._socket.recv(2**16)))
        self._socket.close()

    def _take(self, told: wire.Progress) -> None:
        if told.phase == "loading":
            self._round, self._last = self._round + 1, -1
        elif told.step_seconds is not None and told.step > self._last:
            self._last = told.step
            self.seen.append(Step(time.time(), told.step, self._round, 0))
