"""Jobs on this machine, without a cluster, as processes of the test's own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.specs import tiny

ROOT = Path(__file__).parents[2]
PATIENCE = 240
FOREVER = 100_000
CODE = "from llmtrain_operator.cli import main; main()"


def spec(steps: int, **more: Any) -> dict[str, Any]:
    """A tiny model on the JSON package of Python's standard library."""
    return tiny(steps, 2, str(Path(json.__file__).parent)) | more


class Local:
    """`llmtrain local` on a job named j, and what can be seen of it from outside."""

    def __init__(self, cache: Path, spec: dict[str, Any], nodes: int, **environment: str) -> None:
        job = {"apiVersion": "llmtrain.io/v1alpha1", "kind": "LLMTrainJob", "metadata": {"name": "j"}, "spec": spec}
        (cache / "job.yaml").write_text(json.dumps(job))
        self.cache, self.output = cache, cache / "output.txt"
        paths = os.pathsep.join([str(ROOT / "operator"), str(ROOT / "trainer_image")])
        own = {"PYTHONPATH": paths, "LLMTRAIN_CACHE": str(cache), "NO_COLOR": "1"}
        self._environment = {**os.environ, **own, **environment}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CODE, "local", str(cache / "job.yaml"), "--nodes", str(nodes)],
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def llmtrain(self, *words: str) -> str:
        """What a command says from another terminal; it must succeed."""
        done = self.ask(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ask(self, *words: str, patience: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """A command from another terminal, to its end."""
        return subprocess.run(
            [sys.executable, "-c", CODE, *words, "--local"],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=patience,
            check=False,
        )

    def processes(self, words: str = "") -> list[int]:
        """Processes of this very run, by the folder in their environment, with `words` in their command line."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment, command = (folder / "environ").read_bytes(), (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if f"LLMTRAIN_CACHE={self.cache}\0".encode() in environment and words.encode() in command:
                found.append(int(folder.name))
        return found

    @property
    def status(self) -> dict[str, Any]:
        """The job's status as it is on disk."""
        try:
            job: dict[str, Any] = json.loads((self.cache / "local/jobs/j/status.json").read_text())
        except FileNotFoundError:
            return {}
        return job.get("status") or {}

    @property
    def members(self) -> list[int]:
        """Indexes of the members that train."""
        current = self.status.get("round") or {} if self.status.get("state") == "Running" else {}
        return [member["index"] for member in current.get("members", ())]

    def until(self, met: Callable[[], Any], what: str) -> None:
        """Return when `met`; fail with what was printed if it does not come to that."""
        deadline = time.monotonic() + PATIENCE
        while not met():
            if time.monotonic() > deadline or self.process.poll() is not None:
                pytest.fail(f"{what} did not come:\n{self.output.read_text()[-6000:]}")
            time.sleep(0.1)

    def until_training(self) -> None:
        """Return when the job has done a step."""
        self.until(lambda: (self.status.get("progress") or {}).get("step", 0) > 0, "training")

    def ends_with(self, code: int, patience: float = PATIENCE) -> None:
        """Wait for the end; no process may be left."""
        assert self.process.wait(patience) == code, self.output.read_text()[-6000:]
        self.leaves_nothing()

    def leaves_nothing(self) -> None:
        """All processes go, within a moment if the parent had no chance to wait for them."""
        deadline = time.monotonic() + 15
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not self.processes()

    def kill(self) -> None:
        """End whatever is left of it."""
        self.process.kill()
        self.process.wait()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
