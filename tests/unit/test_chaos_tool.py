"""The tool that does faults in a member's pod: to real processes, and to no others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmtrain_operator.contract import names
from llmtrain_trainer import chaos
from llmtrain_trainer.agent.freezing import state
from llmtrain_trainer.chaos import Missing, Process
from llmtrain_trainer.flash import slot
from llmtrain_trainer.flash.header import Edition
from llmtrain_trainer.flash.shards import LocalShard
from tests.support.flash_stores import JOB, fill, store_in

AGENT = ("/opt/bin/python", "/opt/llmtrain/bin/llmtrain-agent")
ZYGOTE = Process(3, 2, True, ("llmtrain-zygote",))
FORKED = Process(5, 3, True, ("python", "-u", "-m", "llmtrain_trainer.train"))
HELPER = Process(6, 3, False, ("python", "-c", "resource tracker"))


@pytest.mark.parametrize(
    ("others", "zygote", "workers"),
    [
        pytest.param([ZYGOTE, FORKED, HELPER], ZYGOTE, [5], id="forked from the zygote"),
        pytest.param([Process(4, 2, True, ("python", "a.py")), HELPER], None, [4], id="a script, without a zygote"),
        pytest.param([ZYGOTE, Process(9, 5, True, ("gcc",))], ZYGOTE, [], id="what a worker began"),
        pytest.param([ZYGOTE], ZYGOTE, [], id="between two rounds"),
    ],
)
def test_who_is_who_in_a_pod(others: list[Process], zygote: Process | None, workers: list[int]) -> None:
    """By command lines and parents; the init that has the agent's command in its own is not the agent."""
    first = Process(1, 0, True, ("catatonit", "--", "llmtrain-agent"))
    seen = chaos.cast([first, Process(2, 1, True, AGENT), *others])
    assert (seen.agent.pid, seen.zygote) == (2, zygote)
    assert [worker.pid for worker in seen.workers] == workers


def test_a_pod_without_an_agent_is_left_alone() -> None:
    """Its processes are somebody else's."""
    with pytest.raises(Missing, match="no agent"):
        chaos.cast([Process(2, 1, True, ("sh", "-c", "sleep 9"))])


WORKER = "import os, sys, time; os.setpgid(0, 0); print(os.getpid(), flush=True); time.sleep(60)"


class Pod:
    """An agent with one worker, as far as their command lines go."""

    def __init__(self, folder: Path, uid: str) -> None:
        script = folder / "llmtrain-agent"
        script.write_text(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WORKER!r}])")
        self.agent = subprocess.Popen(
            [sys.executable, str(script)], env={**os.environ, names.ENV_POD_UID: uid}, stdout=subprocess.PIPE
        )
        assert self.agent.stdout
        self.worker = int(self.agent.stdout.readline())

    def end(self) -> None:
        subprocess.run(["kill", "-9", str(self.worker)], check=False, stderr=subprocess.DEVNULL)
        self.agent.kill()
        self.agent.wait()


@pytest.fixture
def pods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Pod]]:
    """Two of them; the tool runs in the first."""
    made = [Pod(tmp_path, f"uid-{number}-{os.getpid()}") for number in range(2)]
    monkeypatch.setenv(names.ENV_POD_UID, f"uid-0-{os.getpid()}")
    yield made
    for pod in made:
        pod.end()


def test_a_worker_of_this_pod_is_frozen_then_killed(pods: list[Pod], capsys: pytest.CaptureFixture[str]) -> None:
    """And none of another pod's; afterwards there is none left to do it to."""
    assert chaos.main(["freeze-worker", "--worker", "7"]) == 0
    assert capsys.readouterr().out == f"SIGSTOP to worker {pods[0].worker}\n"
    assert state(pods[0].worker) == "T"
    assert chaos.main(["kill-worker"]) == 0
    pods[0].agent.wait(20)  # it ends with its worker
    assert state(pods[1].worker) == "S"
    capsys.readouterr()
    assert chaos.main(["kill-worker"]) == 1
    assert capsys.readouterr().err == "error: no agent runs in this pod\n"


def test_an_agent_dies_after_the_answer(pods: list[Pod], capsys: pytest.CaptureFixture[str]) -> None:
    """Since its pod, and whoever asked in it, ends with it."""
    assert chaos.main(["kill-agent"]) == 0
    assert capsys.readouterr().out == f"SIGKILL to agent {pods[0].agent.pid}\n"
    assert pods[0].agent.wait(20) == -9
    assert pods[1].agent.poll() is None


def test_what_is_missing_is_named(pods: list[Pod], capsys: pytest.CaptureFixture[str]) -> None:
    """A zygote where workers are started, memory where there is none."""
    assert chaos.main(["kill-zygote"]) == 1
    assert "not forked from a zygote" in capsys.readouterr().err
    assert chaos.main(["fill-memory"]) == 1
    assert "no memory for snapshots" in capsys.readouterr().err
    assert state(pods[0].worker) == "S"


def test_own_snapshots_are_damaged_so_that_it_is_found_out(
    pods: list[Pod], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that have checksums, and no copies of others'; one without could be taken for sound, and stays so."""
    store = store_in(tmp_path / "store")
    for number in (0, 1):
        fill(store.own(0, number), Edition(10 + number, 3, 2), 0, proved=number == 0)
    fill(store.replica(Edition(10, 3, 2), 1, 0), Edition(10, 3, 2), 1)
    monkeypatch.setenv(names.ENV_FLASH, str(store.root))
    monkeypatch.setenv(names.ENV_JOB_UID, JOB)
    assert chaos.main(["corrupt-snapshot"]) == 0
    pods[0].agent.wait(20)
    damage = {held.stem.name: LocalShard(held).damage() for held in store.scan()[0] if slot.has_sums(held)}
    assert {name for name, wrong in damage.items() if wrong} == {"own-0-0"}
    assert {name.partition("-")[0] for name in damage} == {"own", "replica"}
