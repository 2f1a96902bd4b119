"""Puts the rooms together for one job on this machine, as `main.py` does in a cluster.

The coordinator is in this process and listens on loopback without TLS; each pod proves itself by a random token in a
file that only this user can read. A job that an earlier run left unfinished is the same job still.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llmtrain_operator.contract import names
from llmtrain_operator.controller import Controller
from llmtrain_operator.coordinator.server import Coordinator
from llmtrain_operator.coordinator.telemetry import Telemetry
from llmtrain_operator.link import CoordinatorLink
from llmtrain_operator.local import control
from llmtrain_operator.local.cluster import LocalCluster
from llmtrain_operator.local.folder import RunFolder
from llmtrain_operator.local.leftovers import end_leftovers
from llmtrain_operator.local.pods import Machine
from llmtrain_operator.local.recipe import ADDRESS
from llmtrain_operator.local.stored import carried_on, hold
from llmtrain_operator.manifests import Settings
from llmtrain_operator.metrics import Metrics
from llmtrain_operator.state import PodView
from llmtrain_operator.workqueue import WorkQueue

_HEARTBEAT_DEADLINE: Final = 5.0
_INTERVAL: Final = 1.0
_GRACE: Final = 10.0
"""Seconds that the pods have for a clean end."""
_IMAGE: Final = "local"
_DEVICES: Final = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Run:
    """What is to be run and where. `volumes` holds a directory per claim, `folder` is the job's own."""

    job: Mapping[str, Any]
    nodes: int
    folder: RunFolder
    volumes: Path


class Stop:
    """How a run is ended from outside: asked first, so that the job is saved and held; then without asking."""

    def __init__(self) -> None:
        self.asked, self.at_once = asyncio.Event(), asyncio.Event()

    def press(self) -> None:
        """Ask; a second time, insist."""
        (self.at_once if self.asked.is_set() else self.asked).set()


async def train(
    run: Run,
    say: Callable[[PodView, str], None],
    show: Callable[[LocalCluster], bool],
    stop: Stop,
) -> None:
    """Train until `show`, which is called once a second, says that the job has ended, or until `stop`.

    Afterwards no process of it is left. Raises what ended a part that must not end.
    """
    run.folder.make()
    await asyncio.to_thread(end_leftovers, run.folder.tokens)
    run.folder.forget_memories()
    metrics = Metrics()
    cluster = LocalCluster(
        carried_on(run.folder.read("status"), run.job, str(uuid.uuid4()), time.time()),
        Machine(tuple(f"node-{number}" for number in range(1, run.nodes + 1)), os.environ, _own(run), _devices()),
        run.folder,
        wake=lambda key: queue.add(key),
        say=say,
    )
    coordinator = Coordinator(cluster, _HEARTBEAT_DEADLINE, Telemetry())
    with tempfile.TemporaryDirectory(prefix="llmtrain-") as folder:
        socket = Path(folder) / "coordinator.sock"
        link = CoordinatorLink(
            socket,
            lambda update: controller.agent_changed(update),
            lambda connected: controller.link_changed(connected),
        )
        async with (
            coordinator.serving(ADDRESS, 0, None, socket) as port,
            control.serving(run.folder, cluster.patch),
        ):
            image, address = run.job["spec"].get("image") or _IMAGE, f"ws://{ADDRESS}:{port}"
            settings = Settings(image, _IMAGE, address, "", can_avoid=False, metrics_port=0)
            controller = Controller(cluster, link, settings, metrics, lambda key, delay: queue.add(key, delay))
            queue = WorkQueue(controller.reconcile, on_pass=metrics.observe_pass)
            parts = [asyncio.create_task(part) for part in (link.run(), queue.run())]
            queue.add(cluster.key)
            try:
                await _follow(cluster, lambda: show(cluster), stop, parts)
            finally:
                # First, so that nobody starts anew what is being ended.
                for part in parts:
                    part.cancel()
                await asyncio.gather(*parts, return_exceptions=True)
                await cluster.close(_GRACE)
                run.folder.forget_memories()


async def _follow(
    cluster: LocalCluster, ended: Callable[[], bool], stop: Stop, parts: list[asyncio.Task[None]]
) -> None:
    """Until the job has ended, or was suspended because `stop` asked, or `stop` insists."""
    asked, at_once = (asyncio.create_task(event.wait()) for event in (stop.asked, stop.at_once))
    held = False
    try:
        while not ended() and not stop.at_once.is_set():
            if stop.asked.is_set() and not held:
                held = True
                cluster.patch(hold(cluster.job(cluster.key) or {}))
            elif held and _is_held(cluster):
                return
            waits = [at_once, *parts] if held else [asked, at_once, *parts]
            await asyncio.wait(waits, timeout=_INTERVAL, return_when=asyncio.FIRST_COMPLETED)
            for part in parts:
                if part.done():
                    part.result()
                    raise RuntimeError("a part of the operator ended by itself")
    finally:
        asked.cancel()
        at_once.cancel()


def _is_held(cluster: LocalCluster) -> bool:
    job = cluster.job(cluster.key) or {}
    return (job.get("status") or {}).get("state") == "Suspended" and not cluster.pods(cluster.key)


def _own(run: Run) -> dict[str, str]:
    """Environment in which local pods differ from those of a cluster."""
    sources = [path for path in sys.path if Path(path, "llmtrain_operator").is_dir()]
    sources += [path for path in sys.path if Path(path, "llmtrain_trainer").is_dir() and path not in sources]
    paths = [*(str(Path(path).resolve()) for path in sources), os.environ.get("PYTHONPATH", "")]
    procs = (run.job["spec"].get("nodes") or {}).get("procPerNode") or 1
    share = len(os.sched_getaffinity(0)) // (run.nodes * procs)
    return {
        names.ENV_VOLUMES: str(run.volumes),
        names.ENV_DATA_CACHE: str(run.folder.path / "data"),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, share))),
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }


def _devices() -> tuple[str, ...]:
    if (given := os.environ.get(_DEVICES)) is not None:
        return tuple(device for device in given.split(",") if device)
    found = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    return tuple(str(number) for number in range(found))
