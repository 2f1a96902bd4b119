"""Jobs that a test puts on show: a `JobSource` with a dashboard before it, in threads of this process."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import threading
from collections.abc import Iterator
from typing import Any

from llmtrain_operator.dashboard.feed import Feed
from llmtrain_operator.dashboard.server import serving
from llmtrain_operator.state import PodView

KEY = "the-key-of-this-test-0123456789"


class Stage:
    """The jobs of a namespace; tests change them with `put` and `remove`, and set `error` to make looking fail."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.looks = 0
        self._jobs: dict[str, dict[str, Any]] = {}
        self._pods: dict[str, tuple[PodView, ...]] = {}

    def put(self, job: dict[str, Any], *pods: PodView) -> None:
        """Show a job as it is now."""
        self._jobs = {**self._jobs, job["metadata"]["name"]: copy.deepcopy(job)}
        self._pods = {**self._pods, job["metadata"]["name"]: pods}

    def remove(self, name: str) -> None:
        """Delete a job."""
        self._jobs = {key: job for key, job in self._jobs.items() if key != name}

    async def jobs(self, namespace: str) -> list[dict[str, Any]]:
        """All of them."""
        del namespace
        self.looks += 1
        if self.error:
            raise self.error
        return list(self._jobs.values())

    async def pods(self, namespace: str, job: str) -> list[PodView]:
        """Those of one job."""
        del namespace
        return list(self._pods.get(job, ()))


@contextlib.contextmanager
def feeding(stage: Stage) -> Iterator[Feed]:
    """A feed that looks at the stage, in a thread of its own."""
    ready, feeds, stops = threading.Event(), [], []

    async def follow() -> None:
        feeds.append(Feed(stage, "ns"))
        stops.append((asyncio.get_running_loop(), asyncio.current_task()))
        ready.set()
        with contextlib.suppress(asyncio.CancelledError):
            await feeds[0].run()

    thread = threading.Thread(target=asyncio.run, args=(follow(),))
    thread.start()
    ready.wait()
    try:
        yield feeds[0]
    finally:
        [(loop, task)] = stops
        loop.call_soon_threadsafe(task.cancel)
        thread.join()


@contextlib.contextmanager
def shown(stage: Stage, port: int = 0) -> Iterator[str]:
    """The address of a dashboard of the stage."""
    with feeding(stage) as feed, serving(feed.board, KEY, "127.0.0.1", port) as url:
        yield url


def job(name: str = "gpt", **status: Any) -> dict[str, Any]:
    """A job object with a status as the operator writes it."""
    return {
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": f"uid-{name}",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"training": {"maxSteps": 100}},
        "status": {"observedGeneration": 1, "state": "Running", "startTime": "2026-01-01T00:00:00Z", **status},
    }


def pod(index: int, node: str, **more: Any) -> PodView:
    """A member's pod that runs."""
    fields = {
        "name": f"gpt-{index}-1",
        "namespace": "ns",
        "uid": f"pod-{index}",
        "job": "gpt",
        "index": index,
        "incarnation": 1,
        "phase": "Running",
        "ready": True,
        "node": node,
        "deleting": False,
        "ip": "10.0.0.1",
        "reason": "",
        "message": "",
        "exit_code": None,
        "created": "2026-01-01T00:00:00Z",
        "scheduled": True,
        "unschedulable_message": "",
    }
    return PodView(**(fields | more))
