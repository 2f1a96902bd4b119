"""Everything that a job's status said, as it said it: `kubectl get --watch`, with times."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Self

from tests.support.kube import Kubectl


@dataclass(frozen=True)
class Moment:
    """A status, and when it was seen (seconds, monotonic)."""

    at: float
    status: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps done, as shown to the user."""
        return int(self.status.get("progress", {}).get("step", 0))

    @property
    def round(self) -> int:
        """Number of the current round, 0 while there is none."""
        return int(self.status.get("round", {}).get("number", 0))

    @property
    def size(self) -> int:
        """Members of the current round."""
        return len(self.status.get("round", {}).get("members", ()))

    @property
    def trains(self) -> bool:
        """Whether the current round's workers do steps."""
        return bool(self.round and self.status.get("progress", {}).get("phase") == "training")

    @property
    def committed(self) -> int:
        """The newest step that the members could restore together after a loss."""
        return int(self.status.get("flash", {}).get("committedStep") or 0)

    @property
    def copied(self) -> bool:
        """Whether this round's own snapshots are copied."""
        flash = self.status.get("flash", {})
        return bool(self.trains and flash.get("round") == self.round and flash.get("copies") and self.committed > 5)

    def condition(self, kind: str) -> dict[str, Any]:
        """One condition; empty if it was never set."""
        return next((c for c in self.status.get("conditions", ()) if c["type"] == kind), {})


class Story:
    """Watches one job from entry to exit."""

    def __init__(self, kubectl: Kubectl, name: str = "j") -> None:
        words = ("--namespace", kubectl.namespace, "get", "ltj", name, "--watch", "-o", "json")
        self._command = [str(kubectl.program), "--kubeconfig", str(kubectl.kubeconfig), *words]
        self.moments: list[Moment] = []
        self._news = threading.Condition()

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def until(self, condition: Callable[[Moment], object], seconds: float = 90.0, since: float = 0.0) -> Moment:
        """The first moment after `since` for which `condition` holds, waited for if there is none yet."""
        deadline = time.monotonic() + seconds
        with self._news:
            seen = 0
            while True:
                for moment in self.moments[seen:]:
                    if moment.at >= since and condition(moment):
                        return moment
                seen = len(self.moments)
                if not self._news.wait(deadline - time.monotonic()):
                    last = json.dumps(self.moments[-1].status, indent=1)[-6000:] if self.moments else "nothing"
                    raise AssertionError(f"not within {seconds} s; the status is {last}")

    def _read(self, stream: IO[str]) -> None:
        for thing in _objects(stream):
            with self._news:
                self.moments.append(Moment(time.monotonic(), thing.get("status", {})))
                self._news.notify_all()


def _objects(stream: IO[str]) -> Iterator[dict[str, Any]]:
    """kubectl indents its objects, so each ends with a line that is only a brace."""
    lines: list[str] = []
    for line in stream:
        lines.append(line)
        if line == "}\n":
            yield json.loads("".join(lines))
            lines.clear()
