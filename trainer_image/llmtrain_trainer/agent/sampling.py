"""Looking at workers that take no step: what is their stack, and do they compute."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Progress
from llmtrain_trainer.agent.freezing import TRACED, stat, state
from llmtrain_trainer.agent.hangs import Hang, HangWatch, Sample

_PATIENCE: Final = 1.0
"""Seconds for an answer: a process in an uninterruptible call gives none, and is what it was then."""
_HEADING: Final = re.compile(r"^(?:Current thread|Thread) 0x.*$", re.MULTILINE)


class Watches:
    """Over all workers of a round. `hear` may be called in any thread, the others in the agent's."""

    def __init__(self) -> None:
        self._watches: dict[int, HangWatch] = {}  # by global rank
        self._by_local: dict[int, HangWatch] = {}
        self._files: Mapping[int, Path] = {}
        self._asked: dict[int, tuple[float, int]] = {}
        self._lock = threading.Lock()
        self.stacks: dict[int, str] = {}

    def begin(self, ranks: Mapping[int, int], files: Mapping[int, Path]) -> None:
        """New workers: their global ranks and the files of their stacks, by local rank."""
        self._files, self._asked, self.stacks = files, {}, {}
        self._by_local = {local: HangWatch() for local in ranks}
        self._watches = {rank: self._by_local[local] for local, rank in ranks.items()}

    def hear(self, said: Progress) -> None:
        """A worker has told its progress."""
        if watch := self._watches.get(said.rank):
            with self._lock:
                watch.hear(said, time.monotonic())

    def look(self, workers: Mapping[int, int]) -> tuple[int, Hang] | None:
        """The local rank of a worker that hangs, if there is one. `workers`: process ids by local rank."""
        now = time.monotonic()
        with self._lock, contextlib.suppress(OSError):  # of a worker that ends just now
            for local, pid in workers.items():
                if local in self._asked:
                    if found := self._collect(local, pid, now):
                        return local, found
                elif self._by_local[local].due(now) and answers(pid) and state(pid) != TRACED:
                    self._ask(local, pid, now)
        return None

    def _ask(self, local: int, pid: int, now: float) -> None:
        os.truncate(self._files[local], 0)
        os.kill(pid, names.SIGNAL_STACK)
        self._asked[local] = (now, 0)

    def _collect(self, local: int, pid: int, now: float) -> Hang | None:
        """Read the answer once it has stopped growing."""
        since, size = self._asked[local]
        text = self._files[local].read_text(errors="replace")
        if now - since < _PATIENCE and (not text or len(text) != size):
            self._asked[local] = (since, len(text))
            return None
        del self._asked[local]
        self.stacks[local] = text
        return self._by_local[local].judge(Sample(main_stack(text), _ticks(pid), starved(pid)), now)


def answers(pid: int) -> bool:
    """Whether this very process catches the signal: any other would die of it."""
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (names.SIGNAL_STACK - 1) & 1)


def main_stack(text: str) -> str:
    """Of faulthandler's answer the main thread's part, which comes last; innermost frame first."""
    return _HEADING.split(text)[-1].strip("\n")


def starved(pid: int) -> float:
    """Seconds that a process' main thread was ready to compute and had no processor; 0 from a kernel that does not
    count them."""
    try:
        return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def _ticks(pid: int) -> int:
    """Clock ticks that a process' main thread has computed."""
    fields = stat(Path(f"/proc/{pid}/task/{pid}"))
    return int(fields[11]) + int(fields[12]) if fields else 0
