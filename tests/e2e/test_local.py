"""A job on this machine, without a cluster: the real coordinator, agents and trainer as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmtrain_operator.local.init import descendants, living

ROOT = Path(__file__).parents[2]
PATIENCE = 240
FOREVER = 100_000
CODE = "from llmtrain_operator.cli import main; main()"


def spec(steps: int, **more: Any) -> dict[str, Any]:
    """A tiny model on the JSON package of Python's standard library."""
    base = {
        "nodes": {"min": 2},
        "model": {"architecture": {"hiddenSize": 32, "layers": 1, "heads": 2}},
        "data": {"source": str(Path(json.__file__).parent), "include": ["*.py"], "sequenceLength": 64},
        "training": {"maxSteps": steps, "globalBatchSize": 4, "precision": "fp32", "optimizer": {"lr": 0.01}},
    }
    return base | more


class Local:
    """`llmtrain local` on a job named j, and what can be seen of it from outside."""

    def __init__(self, cache: Path, spec: dict[str, Any], nodes: int) -> None:
        job = {"apiVersion": "llmtrain.io/v1alpha1", "kind": "LLMTrainJob", "metadata": {"name": "j"}, "spec": spec}
        (cache / "job.yaml").write_text(json.dumps(job))
        self._cache, self.output = cache, cache / "output.txt"
        paths = os.pathsep.join([str(ROOT / "operator"), str(ROOT / "trainer_image")])
        self._environment = {**os.environ, "PYTHONPATH": paths, "LLMTRAIN_CACHE": str(cache), "NO_COLOR": "1"}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CODE, "local", str(cache / "job.yaml"), "--nodes", str(nodes)],
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def llmtrain(self, *words: str) -> str:
        """What a command says from another terminal; it must succeed."""
        done = subprocess.run(
            [sys.executable, "-c", CODE, *words, "--local"],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def processes(self, words: str = "") -> list[int]:
        """Processes of this very run, by the folder in their environment, with `words` in their command line."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment, command = (folder / "environ").read_bytes(), (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if f"LLMTRAIN_CACHE={self._cache}\0".encode() in environment and words.encode() in command:
                found.append(int(folder.name))
        return found

    @property
    def status(self) -> dict[str, Any]:
        """The job's status as it is on disk."""
        try:
            job: dict[str, Any] = json.loads((self._cache / "local/jobs/j/status.json").read_text())
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

    def ends_with(self, code: int) -> None:
        """Wait for the end; no process may be left."""
        assert self.process.wait(PATIENCE) == code, self.output.read_text()[-6000:]
        self.leaves_nothing()

    def leaves_nothing(self) -> None:
        """All processes go, within a moment if the parent had no chance to wait for them."""
        deadline = time.monotonic() + 15
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not self.processes()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Local]]:
    """Begins a run; what is left of it goes at the end."""
    runs: list[Local] = []

    def begin(steps: int, room: int = 2, **more: Any) -> Local:
        runs.append(Local(tmp_path, spec(steps, **more), room))
        return runs[-1]

    yield begin
    for run in runs:
        run.process.kill()
        run.process.wait()
        for pid in run.processes():
            os.kill(pid, signal.SIGKILL)


def test_a_job_completes_and_exports_its_model(start: Callable[..., Local], tmp_path: Path) -> None:
    """Two members train together; lines carry their number, the model lies in the volume's directory."""
    run = start(20, output="pvc://models/j")
    run.ends_with(0)
    assert (run.status["state"], run.status["nodes"], run.status["restarts"]) == ("Complete", "2/2", 0)
    assert (tmp_path / "local/volumes/models/j/model.safetensors").exists()
    text = run.output.read_text()
    assert all(words in text for words in ("[0] ", "[1] ", "Completed: ", "j  Complete  step 20/20")), text


@pytest.mark.parametrize("victim", ["llmtrain_trainer.train", "llmtrain_trainer.agent"])
def test_a_killed_process_gives_a_new_round(start: Callable[..., Local], victim: str) -> None:
    """A worker's death costs a round, an agent's also its pod; then the job goes on to its end."""
    run = start(150)
    run.until_training()
    own = f"-m\0{victim}"
    os.kill(max(pid for pid in run.processes(own) if b"local.init" not in _command(pid)), signal.SIGKILL)
    run.ends_with(0)
    assert (run.status["state"], run.status["restarts"]) == ("Complete", 1)


ELASTIC = {
    "nodes": {"min": 1, "max": 2},
    "checkpoint": {"durable": {"storage": "pvc://checkpoints/j", "everySteps": 10}},
}


def test_a_lost_member_is_gone_for_good_and_grows_back(start: Callable[..., Local]) -> None:
    """Its first process gets a SIGKILL, which it cannot answer: its worker goes all the same, the other trains on from
    the newest checkpoint, and the next incarnation joins."""
    run = start(FOREVER, **ELASTIC)
    run.until(lambda: (run.status.get("checkpoint") or {}).get("step"), "a checkpoint")
    [first] = run.processes("local.init\0")[-1:]
    theirs = descendants(first, living())
    os.kill(first, signal.SIGKILL)
    run.until(lambda: not theirs & living().keys(), "the end of its processes")
    run.until(lambda: run.status["rounds"] > 1 and run.members == [0, 1], "the next incarnation in the round")
    assert run.status["checkpoint"]["restoredStep"] >= 10
    assert sum(run.status["incarnations"].values()) == 3
    run.process.send_signal(signal.SIGINT)
    run.ends_with(130)


def test_a_member_that_is_told_to_end_costs_no_step(start: Callable[..., Local]) -> None:
    """Its first process gets a SIGTERM, as on a node that shuts down: all save, the other goes on there and then, and
    the next incarnation joins. Nothing is lost, and nothing is done again."""
    run = start(FOREVER, **ELASTIC)
    run.until(lambda: (run.status.get("checkpoint") or {}).get("step"), "a checkpoint")
    first = max(run.processes("local.init\0"))
    os.kill(first, signal.SIGTERM)
    run.until(lambda: run.status["rounds"] > 1 and run.members == [0, 1], "the next incarnation in the round")
    status = run.status
    assert (status["restarts"], status.get("incidents", []), "lastFailure" in status) == (0, [], False)
    assert status["ledger"].get("recompute", 0) == 0
    assert "was told to end" in run.output.read_text()
    run.process.send_signal(signal.SIGINT)
    run.ends_with(130)


def test_a_run_is_steered_from_another_terminal_and_taken_up_where_it_was(start: Callable[..., Local]) -> None:
    """Status, logs, events and scale with --local; Ctrl-C saves, and the same command goes on from there to the end."""
    run = start(FOREVER, **ELASTIC)
    run.until(lambda: run.members == [0, 1], "both members")
    assert "j  Running" in run.llmtrain("status", "j")
    assert "is to have 1 members" in run.llmtrain("scale", "j", "1", "--wait")
    assert run.members == [0]
    assert "[0] " in run.llmtrain("logs", "j", "--tail", "5")
    assert "RoundStarted" in run.llmtrain("events", "j")
    run.process.send_signal(signal.SIGINT)
    run.ends_with(130)
    saved = run.status["checkpoint"]["step"]
    assert (run.status["state"], saved > 0) == ("Suspended", True)
    assert "saving a checkpoint, then stopping; another Ctrl-C ends it at once" in run.output.read_text()
    assert "j  Suspended" in run.llmtrain("status", "j")
    assert f"{saved} " in run.llmtrain("checkpoints", "ls", "j")
    again = start(saved + 5, **ELASTIC)
    again.ends_with(0)
    status = again.status
    assert (status["state"], status["progress"]["step"], status["restarts"]) == ("Complete", saved + 5, 0)
    assert (status["checkpoint"]["restoredStep"], status["rounds"]) == (saved, 3)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)],
    ids=lambda value: str(value),
)
def test_no_process_outlives_the_command(start: Callable[..., Local], number: signal.Signals, code: int) -> None:
    """Whether it is asked to end or killed: agents, workers and their helpers go with it."""
    run = start(FOREVER)
    run.until_training()
    assert len(run.processes("llmtrain_trainer.train")) == 2
    run.process.send_signal(number)
    run.ends_with(code)


def test_members_beyond_the_nodes_find_no_room(start: Callable[..., Local]) -> None:
    """The status says why nothing trains and what would help."""
    run = start(20, room=1)
    run.until(lambda: "`--nodes 2` makes room" in json.dumps(run.status), "the reason")
    run.process.send_signal(signal.SIGINT)
    run.ends_with(130)


def test_a_failed_job_is_exit_code_1(start: Callable[..., Local]) -> None:
    """With the reason by name."""
    run = start(5, data={"source": "/nowhere"})
    run.ends_with(1)
    assert run.status["lastFailure"]["reason"] == "DataMissing"


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
