"""The baselines of `make bench-recovery`: the same trainer and model under torchrun and dlrover-run, on this machine.

torchrun as it comes, and tuned as far as it goes without splitting in two: three agents. dlrover-run with its own local
master, which serves one node: its three workers are under one agent, so no node can be taken from it. What all are
given: a store of their own for each attempt, without which torchrun's restarts with gloo mostly never end, and a
durable checkpoint in memory every few steps.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from llmtrain_operator.api.validation import parse
from llmtrain_operator.contract import names
from llmtrain_operator.local.init import descendants, living
from tests.bench import dlrover_env
from tests.bench.recovery_local import MEMBERS
from tests.bench.recovery_steps import PATIENCE, Reports, Step, Trial, Trials
from tests.support.local import FOREVER, ROOT, spec

_SETTLED: Final = 20
"""Steps of a round before the next fault."""


@dataclass(frozen=True)
class Launcher:
    """What starts the workers: `command`, `{port}` being a free one, by `agents` agents, one for each node. `master`:
    what they talk to, if that is a process of its own."""

    name: str
    agents: int
    command: tuple[str, ...]
    paths: tuple[str, ...] = ()
    master: tuple[str, ...] = ()


def _torchrun(name: str, *options: str) -> Launcher:
    command = (
        *(sys.executable, "-m", "torch.distributed.run", f"--nnodes=1:{MEMBERS}", "--nproc-per-node=1"),
        *("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=bench", "--local-addr=127.0.0.1"),
        *("--max-restarts=1000", *options, "-m", "llmtrain_trainer.train"),
    )
    return Launcher(name, MEMBERS, command)


TORCHRUN: Final = _torchrun("torchrun as it comes")
TUNED: Final = _torchrun(
    "torchrun, tuned",
    "--monitor-interval=0.1",
    "--rdzv-conf=last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3",
)


def dlrover() -> Launcher:
    """In DLRover's own environment, with what that lacks from ours. Raises `EnvironmentMissing`."""
    python = dlrover_env.python_of_dlrover()
    # `--standalone` starts this master too, but not with the torch that its requirements bring.
    serving = ("-m", "dlrover.python.master.main", "--platform", "local", "--node_num", "1", "--job_name", "bench")
    command = (
        *(str(python), "-P", str(python.with_name("dlrover-run")), "--nnodes=1", f"--nproc_per_node={MEMBERS}"),
        *("--max_restarts=1000", "--monitor_interval=0.1", str(Path(__file__).with_name("dlrover_worker.py"))),
    )
    return Launcher(
        "dlrover-run", 1, command, (sysconfig.get_path("purelib"),), (str(python), *serving, "--port", "{port}")
    )


class Running:
    """The agents. The first one's process holds the rendezvous and stays."""

    def __init__(self, folder: Path, launcher: Launcher) -> None:
        self._folder, self._launcher = folder, launcher
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._agents: dict[int, subprocess.Popen[bytes]] = {}
        self._log = (folder / "output.log").open("wb")
        stored = {"durable": {"storage": f"file://{folder}/checkpoints", "everySteps": 20}, "flash": {"enabled": False}}
        job, problems = parse("j", spec(FOREVER, nodes={"min": 1, "max": MEMBERS}, checkpoint=stored))
        assert job is not None, problems
        self._spec = job.model_dump_json(by_alias=True, exclude_none=True)
        if launcher.master:
            self._master = self._run(launcher.master, {})

    def start(self, node: int) -> None:
        own = {
            names.ENV_SPEC: self._spec,
            names.ENV_PROGRESS_SOCKET: str(self._folder / "s"),
            names.ENV_DATA_CACHE: str(self._folder / "data"),
            "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'trainer_image'}",
            "LLMTRAIN_BENCH_PATHS": os.pathsep.join(self._launcher.paths),
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "DLROVER_MASTER_ADDR": f"127.0.0.1:{self._port}",
        }
        self._agents[node] = self._run(self._launcher.command, own)
        if not self._launcher.master:
            self._await_store()  # else another agent may be the one that holds it, and be killed

    def _await_store(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port)):
                return
            time.sleep(0.1)
        raise TimeoutError("nobody holds the rendezvous")

    def _run(self, command: tuple[str, ...], own: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [word.format(port=self._port) for word in command],
            env=os.environ | own,
            cwd=self._folder,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def kill_worker(self, node: int) -> None:
        """One of the processes that train, which are those that began last."""
        agent = self._agents[node % len(self._agents)].pid
        os.kill(max(pid for pid in descendants(agent, living()) if _trains(pid)), signal.SIGKILL)

    def kill_node(self, node: int) -> None:
        _end(self._agents[node])

    def end(self) -> None:
        for agent in (*self._agents.values(), *([self._master] if self._launcher.master else [])):
            _end(agent)
        self._log.close()


def _end(agent: subprocess.Popen[bytes]) -> None:
    for pid in (agent.pid, *descendants(agent.pid, living())):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    agent.wait()


def _trains(pid: int) -> bool:
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        own = b"torch.distributed.run" not in command and b"dlrover-run" not in command
        return own and (b"llmtrain_trainer.train" in command or b"dlrover_worker" in command)
    return False


@contextlib.contextmanager
def running(launcher: Launcher) -> Iterator[tuple[Running, Reports]]:
    """The agents, from their start on; nothing of them is left afterwards. What they said is shown after an error."""
    with tempfile.TemporaryDirectory(prefix="llmtrain-bench-", dir="/dev/shm") as name:
        run = Running(Path(name), launcher)
        try:
            with Reports(Path(name) / "s") as steps:
                for node in range(launcher.agents):
                    run.start(node)
                yield run, steps
        except TimeoutError:
            print((Path(name) / "output.log").read_text(errors="replace")[-6000:], file=sys.stderr)
            raise
        finally:
            run.end()


def _settled(steps: Reports, since: float) -> Step:
    first = steps.until(lambda _: True, since, "training")
    return steps.until(lambda step: step.number >= first.number + _SETTLED, first.at, "some steps")


@dataclass
class Baseline:
    """Killed workers and killed nodes. `ended`: what it did not get over, if that was the end of it."""

    worker: Trials = field(default_factory=list)
    node: Trials = field(default_factory=list)
    ended: str = ""


def trials(launcher: Launcher, workers: int, nodes: int) -> Baseline:
    """So many killed workers, and so many killed nodes; each node is started again afterwards."""
    found = Baseline()
    try:
        with running(launcher) as (run, steps):
            for number in range(workers):
                found.worker.append(_trial(steps, run.kill_worker, _victim(number)))
            for number in range(nodes):
                found.node.append(_trial(steps, run.kill_node, _victim(number)))
                small = _settled(steps, steps.seen[-1].at)
                run.start(_victim(number))
                steps.until(lambda step, small=small: step.round > small.round, small.at, "the node's return")  # type: ignore[misc]
    except TimeoutError as error:
        found.ended = f"after {len(found.worker)} workers and {len(found.node)} nodes: {error}"
    return found


def _victim(number: int) -> int:
    return 1 + number % (MEMBERS - 1)


def _trial(steps: Reports, kill: Callable[[int], None], node: int) -> Trial:
    _settled(steps, steps.seen[-1].at if steps.seen else 0.0)
    last, began = steps.seen[-1], time.time()
    kill(node)
    after = steps.until(lambda step: step.round > last.round, began, "a step after the end of a process")
    return Trial(after.at - began - steps.pace(began), steps.again(after))
