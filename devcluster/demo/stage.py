"""What the demo plays on: a cluster by way of kubectl, a console, and a clock for its parts."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from devcluster.errors import DevclusterError

JOB, NAMESPACE, SYSTEM = "gpt-tiny", "llmtrain-demo", "llmtrain-system"
LOOK_INTERVAL: Final = 0.3
"""Seconds between looks at the job's status; the operator writes progress once a second."""
LONGEST_PART: Final = 600.0

Status = dict[str, Any]


@dataclass
class Stage:
    """The cluster that a demo runs on, the images it uses, and how long its parts took."""

    kubectl: Path
    kubeconfig: Path
    values: dict[str, Any]
    times: dict[str, float] = field(default_factory=dict)
    console: Console = field(default_factory=lambda: Console(highlight=False))

    @contextlib.contextmanager
    def part(self, title: str) -> Iterator[None]:
        """A part of the demo: announced, and timed if it succeeds."""
        self.console.rule(f"[bold]{title}", align="left")
        begun = time.monotonic()
        yield
        self.times[title] = time.monotonic() - begun

    def run(self, *words: str, stdin: str | None = None, namespace: str = NAMESPACE) -> str:
        """kubectl in the demo's namespace. DevclusterError with kubectl's words if it fails."""
        command = [str(self.kubectl), "--kubeconfig", str(self.kubeconfig), "-n", namespace, *words]
        done = subprocess.run(command, capture_output=True, text=True, input=stdin, check=False)
        if done.returncode:
            raise DevclusterError(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def show(self, *words: str, stdin: str | None = None) -> None:
        """The same, with the command and its output on the screen."""
        self.console.print(f"[bold]$ kubectl {' '.join(words)}")
        self.console.print(self.run(*words, stdin=stdin).rstrip())

    def status(self) -> Status:
        """The job's status as it is now."""
        status: Status = json.loads(self.run("get", "ltj", JOB, "-o", "json")).get("status") or {}
        return status

    def pods(self, *selector: str, namespace: str = NAMESPACE) -> list[dict[str, Any]]:
        """Pods by kubectl's own selector options."""
        items: list[dict[str, Any]] = json.loads(self.run("get", "pods", *selector, "-o", "json", namespace=namespace))[
            "items"
        ]
        return items

    def follow(self, until: Callable[[Status], bool]) -> Status:
        """Show live progress until the status is as asked or the job is complete; the status then.

        Raises DevclusterError if the job fails, or if it takes unreasonably long.
        """
        watcher = self._watcher()
        deadline = time.monotonic() + LONGEST_PART
        try:
            while not until(status := self.status()) and not status.get("completionTime"):
                if time.monotonic() > deadline:
                    raise DevclusterError(f"nothing came of it in {LONGEST_PART:.0f} s; the job is {status}")
                time.sleep(LOOK_INTERVAL)
        finally:
            watcher.send_signal(signal.SIGINT)
            watcher.wait()
        if status.get("state") == "Failed":
            self.show("logs", "-l", f"llmtrain.io/job={JOB}", "--tail=30", "--prefix")
            raise DevclusterError("the job failed")
        return status

    def _watcher(self) -> subprocess.Popen[bytes]:
        words = ["status", JOB, "--watch", "-n", NAMESPACE]
        self.console.print(f"[bold]$ llmtrain {' '.join(words[:3])}")
        llmtrain = str(Path(sys.executable).with_name("llmtrain"))
        return subprocess.Popen([llmtrain, *words, "--kubeconfig", str(self.kubeconfig)])

    @property
    def trainer_image(self) -> str:
        """The trainer image in use."""
        image = self.values["trainerImage"]
        return f"{image['repository']}:{image['tag']}"
