"""Our side of `make bench-recovery`, as processes on this machine: a job of three members, one fault after another."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from llmtrain_operator.local.folder import RunFolder
from llmtrain_operator.local.init import descendants, living
from tests.bench.recovery_steps import Snapshots, Trial, Trials, recovered, undisturbed
from tests.support.local import FOREVER, Local, spec

MEMBERS: Final = 3
WORKER: Final = "-m\0llmtrain_trainer.train"
POD: Final = "local.init\0"


class Job:
    """A job that trains on and on, and what is done to it."""

    def __init__(self, run: Local, steps: Snapshots) -> None:
        self._run, self._steps = run, steps

    def settle(self) -> None:
        """Wait until all members train, and have for a moment."""
        undisturbed(lambda: self._run.status, MEMBERS)

    def fault(self, how: Callable[[int], None], member: int) -> Trial:
        """Do it to a member of the round and time what follows."""
        self.settle()
        last = self._steps.seen[-1]
        began = time.time()
        how(member)
        after = self._steps.until(lambda step: step.round > last.round, began, "a step after the fault")
        took = after.at - began - self._steps.pace(began)
        return Trial(took, self._steps.again(after), *recovered(lambda: self._run.status, last.round))

    def growth(self) -> Trial:
        """The pause when the member that is missing joins again."""
        small = self._steps.seen[-1]
        after = self._steps.until(lambda step: step.workers == MEMBERS, small.at, "the replacement")
        return self._steps.pause(after)

    def kill_worker(self, member: int) -> None:
        os.kill(self._worker(member), signal.SIGKILL)

    def freeze_worker(self, member: int) -> None:
        os.kill(self._worker(member), signal.SIGSTOP)

    def kill_pod(self, member: int) -> None:
        """The pod's first process and all that it began: nobody is left to say a word."""
        [first] = self._of(member, POD)
        for pid in (*descendants(first, living()), first):
            with contextlib.suppress(ProcessLookupError):  # it went with another
                os.kill(pid, signal.SIGKILL)

    def _worker(self, member: int) -> int:
        return max(set(self._of(member, WORKER)) - set(self._of(member, POD)))

    def _of(self, member: int, words: str) -> list[int]:
        """The processes of a member with these words in their command lines."""
        index = f"LLMTRAIN_MEMBER_INDEX={member}\0".encode()
        found = self._run.processes(words)
        return [pid for pid in found if index in Path(f"/proc/{pid}/environ").read_bytes()]


@contextlib.contextmanager
def training() -> Iterator[Job]:
    """The job, from its first step on; nothing of it is left afterwards."""
    flash = {"flash": {"everySteps": 1, "replicas": 1}}
    wanted = spec(FOREVER, nodes={"min": 1, "max": MEMBERS}, checkpoint=flash, recovery={"maxRestarts": 1000})
    with tempfile.TemporaryDirectory(prefix="llmtrain-bench-") as name:
        folder = RunFolder(Path(name) / "local/jobs/j")
        run = Local(Path(name), wanted, MEMBERS)
        try:
            with Snapshots(lambda: folder.memories.glob("*")) as steps:
                yield Job(run, steps)
        finally:
            for _ in range(2):  # ask, then insist
                run.process.send_signal(signal.SIGINT)
                time.sleep(1)
            run.process.wait(60)
            run.leaves_nothing()
            folder.forget_memories()


def trials(count: int) -> dict[str, Trials]:
    """Every fault `count` times, each time on another member. `joins`: the pause when the replacement joined."""
    found: dict[str, Trials] = {"worker": [], "pod": [], "frozen": [], "joins": []}
    with training() as job:
        for number in range(count):
            found["worker"].append(job.fault(job.kill_worker, number % MEMBERS))
        for number in range(count):
            found["frozen"].append(job.fault(job.freeze_worker, number % MEMBERS))
        for number in range(count):
            found["pod"].append(job.fault(job.kill_pod, number % MEMBERS))
            found["joins"].append(job.growth())
    return found
