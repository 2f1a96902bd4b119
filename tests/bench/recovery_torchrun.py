"""The baselines of `make bench-recovery`: the same trainer and model under torchrun, three agents on this machine.

As it comes, and tuned as far as it goes without splitting in two. What both are given: a store of their own for each
attempt, without which restarts with gloo mostly never end, and a checkpoint in memory every few steps.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from llmtrain_operator.api.validation import parse
from llmtrain_operator.contract import names
from llmtrain_operator.local.init import descendants, living
from tests.bench.recovery_local import MEMBERS
from tests.bench.recovery_steps import Reports, Step, Trial, Trials
from tests.e2e.test_local import FOREVER, ROOT, spec

TUNED: Final = (
    "--monitor-interval=0.1",
    "--rdzv-conf=last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3",
)
_SETTLED: Final = 20
"""Steps of a round before the next fault."""


class Torchrun:
    """Three agents, each what a node would run. The first one's process holds the rendezvous and stays."""

    def __init__(self, folder: Path, options: tuple[str, ...]) -> None:
        self._folder, self._options = folder, options
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._agents: dict[int, subprocess.Popen[bytes]] = {}
        self._log = (folder / "torchrun.log").open("wb")
        stored = {"durable": {"storage": f"file://{folder}/checkpoints", "everySteps": 20}, "flash": {"enabled": False}}
        job, problems = parse("j", spec(FOREVER, nodes={"min": 1, "max": MEMBERS}, checkpoint=stored))
        assert job is not None, problems
        self._spec = job.model_dump_json(by_alias=True, exclude_none=True)

    def start(self, node: int) -> None:
        own = {
            names.ENV_SPEC: self._spec,
            names.ENV_PROGRESS_SOCKET: str(self._folder / "s"),
            names.ENV_DATA_CACHE: str(self._folder / "data"),
            "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'trainer_image'}",
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }
        self._agents[node] = subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", f"--nnodes=1:{MEMBERS}", "--nproc-per-node=1"),
                *("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{self._port}", "--rdzv-id=bench"),
                *("--local-addr=127.0.0.1", "--max-restarts=1000", *self._options, "-m", "llmtrain_trainer.train"),
            ],
            env=os.environ | own,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def kill_worker(self, node: int) -> None:
        os.kill(max(descendants(self._agents[node].pid, living())), signal.SIGKILL)

    def kill_node(self, node: int) -> None:
        agent = self._agents[node]
        for pid in (agent.pid, *descendants(agent.pid, living())):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        agent.wait()

    def end(self) -> None:
        for node in self._agents:
            self.kill_node(node)
        self._log.close()


@contextlib.contextmanager
def running(options: tuple[str, ...]) -> Iterator[tuple[Torchrun, Reports]]:
    """The agents, from their start on; nothing of them is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="llmtrain-bench-", dir="/dev/shm") as name:
        run = Torchrun(Path(name), options)
        try:
            with Reports(Path(name) / "s") as steps:
                for node in range(MEMBERS):
                    run.start(node)
                yield run, steps
        finally:
            run.end()


def _settled(steps: Reports, since: float) -> Step:
    first = steps.until(lambda _: True, since, "training")
    return steps.until(lambda step: step.number >= first.number + _SETTLED, first.at, "some steps")


def trials(options: tuple[str, ...], workers: int, nodes: int) -> dict[str, Trials]:
    """So many killed workers, and so many killed nodes; each node is started again afterwards."""
    found: dict[str, Trials] = {"worker": [], "node": []}
    with running(options) as (run, steps):
        for number in range(workers):
            found["worker"].append(_trial(steps, run.kill_worker, _victim(number)))
        for number in range(nodes):
            found["node"].append(_trial(steps, run.kill_node, _victim(number)))
            small = _settled(steps, steps.seen[-1].at)
            run.start(_victim(number))
            steps.until(lambda step, small=small: step.round > small.round, small.at, "the node's return")  # type: ignore[misc]
    return found


def _victim(number: int) -> int:
    return 1 + number % (MEMBERS - 1)


def _trial(steps: Reports, kill: Callable[[int], None], node: int) -> Trial:
    _settled(steps, steps.seen[-1].at if steps.seen else 0.0)
    last, began = steps.seen[-1], time.time()
    kill(node)
    after = steps.until(lambda step: step.round > last.round, began, "a step after the end of a process")
    return Trial(after.at - began - steps.pace(began), max(0, last.number + 1 - after.number))
