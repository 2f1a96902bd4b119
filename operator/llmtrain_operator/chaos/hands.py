"""What does faults to members: processes of a run on this machine, or pods of a cluster with the user's own rights.

Both have the trainer's tool do it where the member's processes are (`llmtrain_trainer.chaos`); a pod is ended from
outside. Nothing else than the pod that was named is touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llmtrain_operator.chaos.faults import FAULTS, Fault
from llmtrain_operator.contract import names
from llmtrain_operator.local.folder import RunFolder
from llmtrain_operator.local.leftovers import processes
from llmtrain_operator.ports import Rejected
from llmtrain_operator.state import PodView

if TYPE_CHECKING:
    from llmtrain_operator.cluster.user import UserCluster

_TOOL: Final = "llmtrain_trainer.chaos"
_INIT: Final = b"llmtrain_operator.local.init"
_IN_A_MEMBER: Final = (
    *("kill-worker", "kill-workers", "freeze-worker", "kill-zygote", "corrupt-snapshot", "kill-agent", "freeze-agent"),
    "kill-pod",
)


class ProcessHand:
    """For a run on this machine. `environment`: that of a process of the trainer here."""

    # Without fill-memory: the memory for snapshots is not the run's own, it is all that this machine has to share.
    faults: Final = tuple(FAULTS[name] for name in _IN_A_MEMBER)

    def __init__(self, folder: RunFolder, environment: Mapping[str, str]) -> None:
        self._folder, self._environment = folder, environment

    async def strike(self, fault: Fault, pod: PodView, worker: int, seconds: float) -> str:
        """See `Hand`."""
        if fault.name == "kill-pod":
            return self._kill(pod)
        own = {
            names.ENV_POD_UID: pod.uid,
            names.ENV_FLASH: str(self._folder.memory(pod.uid)),
            names.ENV_JOB_UID: pod.owner,
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", _TOOL, *_arguments(fault, worker, seconds)),
            env={**self._environment, **own},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
        return _answer(pod, process.returncode or 0, output.decode(), errors.decode(errors="replace"))

    def _kill(self, pod: PodView) -> str:
        """Its first process, with which all others end."""
        for pid in processes(self._folder.tokens / pod.name):
            with contextlib.suppress(OSError):
                if _INIT in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    return f"SIGKILL to {pod.name}"
        raise Rejected(f"{pod.name} has just ended")


class PodHand:
    """For a cluster; needs the right to `pods/exec`, and for kill-pod the right to delete pods."""

    faults: tuple[Fault, ...] = tuple(FAULTS[name] for name in (*_IN_A_MEMBER, "fill-memory"))

    def __init__(self, cluster: UserCluster) -> None:
        self._cluster = cluster

    async def strike(self, fault: Fault, pod: PodView, worker: int, seconds: float) -> str:
        """See `Hand`."""
        if fault.name == "kill-pod":
            await self._cluster.kill_pod(pod.namespace, pod.name, pod.uid)
            return f"{pod.name} deleted without grace"
        command = ["python3", "-m", _TOOL, *_arguments(fault, worker, seconds)]
        done = await self._cluster.execute(pod.namespace, pod.name, command)
        return _answer(pod, done.code, done.output, done.errors)


def _arguments(fault: Fault, worker: int, seconds: float) -> tuple[str, ...]:
    # To the tool a worker of one member is as good as those of all.
    name = "kill-worker" if fault.name == "kill-workers" else fault.name
    return name, "--worker", str(worker), "--seconds", f"{seconds:g}"


def _answer(pod: PodView, code: int, output: str, errors: str) -> str:
    if code:
        raise Rejected(f"{pod.name}: {errors.strip().removeprefix('error: ') or f'the tool ended with code {code}'}")
    return f"{output.strip()} of {pod.name}"
