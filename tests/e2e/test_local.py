"""A job on this machine, without a cluster: the real coordinator, agents and trainer as processes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from devcluster.cgroups import current_hierarchies
from llmtrain_operator.contract import names
from llmtrain_operator.local.init import descendants, living
from llmtrain_trainer.elastic_data import SampleOrder
from tests.support.local import FOREVER, Local, spec
from tests.support.metrics import samples

ROOT = Path(__file__).parents[2]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Local]]:
    """Begins a run; what is left of it goes at the end."""
    runs: list[Local] = []

    def begin(steps: int, room: int = 2, **more: Any) -> Local:
        runs.append(Local(tmp_path, spec(steps, **more), room))
        return runs[-1]

    yield begin
    for run in runs:
        run.kill()


def test_a_job_completes_and_exports_its_model(start: Callable[..., Local], tmp_path: Path) -> None:
    """Two members train together; lines carry their number, the model lies in the volume's directory."""
    run = start(20, output="pvc://models/j")
    run.ends_with(0)
    assert (run.status["state"], run.status["nodes"], run.status["restarts"]) == ("Complete", "2/2", 0)
    assert (tmp_path / "local/volumes/models/j/model.safetensors").exists()
    text = run.output.read_text()
    assert all(words in text for words in ("[0] ", "[1] ", "Completed: ", "j  Complete  step 20/20")), text


def test_a_job_measures_its_nodes_before_it_trains(start: Callable[..., Local]) -> None:
    """Both members are measured against each other, found to be alike, and train; the condition has the figures."""
    # The processes of a busy machine differ more than its nodes would.
    run = start(20, recovery={"preflight": {"enabled": True, "tolerance": 0.01, "seconds": 20}})
    run.ends_with(0)
    assert (run.status["state"], run.status["nodes"], run.status["restarts"]) == ("Complete", "2/2", 0)
    passed = next(each for each in run.status["conditions"] if each["type"] == "PreflightPassed")
    assert (passed["status"], passed["reason"]) == ("True", "Passed")
    figures = r"matmul [0-9.]+ TFLOP/s, memory bandwidth [0-9.]+ GB/s, all-reduce with a neighbour [0-9.]+ MB/s, disk "
    assert re.match(rf"2 nodes were measured, at the median: {figures}[0-9.]+ MB/s$", passed["message"])


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


def test_members_show_metrics_that_outlive_their_workers(
    start: Callable[..., Local], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each at a port of its own; steps before and after a kill are in one histogram, and the restore has its tier."""
    first = _free_ports(2)
    monkeypatch.setenv(names.ENV_METRICS_PORT, str(first))
    run = start(FOREVER)

    def shown(member: int, name: str) -> float:
        """The sum of a metric's series; 0 while there is none."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{first + member}/metrics", timeout=5) as answer:
                return sum(samples(answer.read()).get(f"llmtrain_member_{name}", {}).values())
        except OSError:
            return 0.0

    run.until(lambda: all(shown(member, "committed_step") > 5 for member in (0, 1)), "metrics of both members")
    before = shown(0, "step_duration_seconds_count")
    assert before > 5
    own = "-m\0llmtrain_trainer.train"
    os.kill(max(pid for pid in run.processes(own) if b"local.init" not in _command(pid)), signal.SIGKILL)
    run.until(lambda: all(shown(member, "worker_restarts_total") == 1 for member in (0, 1)), "new workers")
    run.until(lambda: all(shown(member, "restore_seconds") > 0 for member in (0, 1)), "a restore")
    run.until(lambda: shown(0, "step_duration_seconds_count") > before, "more steps")
    run.until(lambda: run.status.get("checkpoint", {}).get("restoredTier") == "memory", "the tier in the status")


def _free_ports(count: int) -> int:
    """The first of so many free ports in a row."""
    while True:
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            first: int = held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            for number in range(1, count):
                held.enter_context(socket.create_server(("127.0.0.1", first + number)))
            return first


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


def test_a_spare_takes_a_lost_members_place(start: Callable[..., Local]) -> None:
    """The next round is of full size and goes on at the committed step, from what the others have in memory; the lost
    one's successor is the spare then."""
    run = start(FOREVER, room=3, nodes={"min": 2, "spares": 1})
    run.until(lambda: run.members and run.status.get("spares") == 1, "a member that is spare")
    spare = ({0, 1, 2} - set(run.members)).pop()
    run.until(lambda: (run.status.get("flash") or {}).get("committedStep", 0) > 0, "copies in memory")
    victim = max(run.members)
    [first] = [pid for pid in run.processes("local.init\0") if f"LLMTRAIN_MEMBER_INDEX={victim}\0" in _environment(pid)]
    os.kill(first, signal.SIGKILL)
    run.until(lambda: run.status["rounds"] == 2 and spare in run.members, "the spare in the round")
    assert (len(run.members), run.status["nodes"]) == (2, "2/2")
    run.until(lambda: run.status["spares"] == 1, "another spare")
    assert (run.status["rounds"], run.status["incidents"][0]["lostSteps"]) == (2, 0)
    assert "spare" in run.llmtrain("status", "j")
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


@pytest.fixture
def throttle() -> Iterator[Callable[[list[int]], None]]:
    """Gives processes 5 % of a processor together, as a container's limit does, until they end."""
    group = next((Path(h.own) for h in current_hierarchies() if "cpu" in h.controllers.split(",")), None)
    if group is None:
        pytest.skip("needs a cpu hierarchy of cgroup v1")
    slow = group / f"llmtrain-slow-{os.getpid()}"
    slow.mkdir()
    (slow / "cpu.cfs_period_us").write_text("100000")
    (slow / "cpu.cfs_quota_us").write_text("5000")

    def begin(pids: list[int]) -> None:
        for pid in pids:
            (slow / "cgroup.procs").write_text(str(pid))

    yield begin
    for pid in (slow / "cgroup.procs").read_text().split():
        (group / "cgroup.procs").write_text(pid)
    slow.rmdir()


def test_a_slow_member_is_named_and_replaced(
    throttle: Callable[[list[int]], None], start: Callable[..., Local]
) -> None:
    """Both members' steps take long then; the one whose worker has hardly any processor leaves at a step boundary, and
    the next incarnation is as fast as the other. No restart, no step done again."""
    run = start(FOREVER, room=3, recovery={"straggler": "replace"}, **ELASTIC)
    run.until(
        lambda: run.members == [0, 1] and (run.status.get("checkpoint") or {}).get("step"), "both and a checkpoint"
    )
    throttle(
        [pid for pid in run.processes("llmtrain_trainer.train") if "LLMTRAIN_MEMBER_INDEX=1\0" in _environment(pid)]
    )
    run.until(lambda: run.status.get("replaced"), "a replacement")
    events = run.llmtrain("events", "j")
    assert ("StragglerFound" in events, "member 1 (rank 1" in events, "member 0 (rank 0" in events) == (
        True,
        True,
        False,
    )
    saved = run.status["progress"]["step"]
    run.until(lambda: run.status["incarnations"] == {"0": 1, "1": 2} and run.members == [0, 1], "another pod")
    run.until(lambda: run.status["progress"]["step"] > saved + 20, "steps")
    assert run.status["restarts"] == 0
    run.process.send_signal(signal.SIGINT)
    run.ends_with(130)


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


def _environment(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_text()


LENGTH, SEED = 32, 7


def text(path: Path, odd: dict[int, bytes]) -> dict[str, Any]:
    """A text of 600 samples that is easy to learn, but for those at the `odd` places of the order, as `spec.data`."""
    count = 600
    plain = bytearray((b"The loss of this text is a number. " * count)[: LENGTH * count + 1])
    order = SampleOrder(SEED, count)
    for place, what in odd.items():
        start = order[place] * LENGTH + 1
        plain[start : start + len(what)] = what
    path.write_bytes(plain)
    return {"source": str(path), "sequenceLength": LENGTH, "validationFraction": 0}


def training(steps: int, rate: float) -> dict[str, Any]:
    """Batches of four."""
    return {"maxSteps": steps, "globalBatchSize": 4, "precision": "fp32", "seed": SEED, "optimizer": {"lr": rate}}


@pytest.fixture
def poison(tmp_path: Path) -> dict[str, Any]:
    """A model that knows no number for one token, and a text that has it once: the eleventh batch's loss is NaN."""
    shape = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(shape)
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = float("nan")
    model.save_pretrained(tmp_path / "model")
    data = text(tmp_path / "text.txt", {41: b"\a"})
    return {"model": {"pretrained": str(tmp_path / "model")}, "data": data, "training": training(30, 0.001)}


def test_a_batch_that_breaks_training_is_left_out(start: Callable[..., Local], poison: dict[str, Any]) -> None:
    """Both members say so at the same step, go back to their memory, and train on without these four samples."""
    run = start(30, **poison, recovery={"numerics": "rollbackAndSkip", "maxRestarts": 0}, output="pvc://models/j")
    run.ends_with(0)
    [made] = run.status["rollbacks"]
    assert (made["reason"], made["step"], made["skip"]) == ("NonFiniteLoss", 10, {"first": 40, "end": 44})
    assert 0 < made["to"] <= run.status["checkpoint"]["restoredStep"] <= 10
    [incident] = run.status["incidents"]
    assert (incident["reason"], incident["lostSteps"], incident["outcome"]) == ("NonFiniteLoss", 0, "Recovered")
    assert (run.status["state"], run.status["progress"]["step"]) == ("Complete", 30)
    facts = json.loads((run.cache / "local/volumes/models/j/llmtrain.json").read_text())
    assert facts["tokens"] == 30 * 4 * 32


def test_what_comes_back_after_a_roll_back_fails(start: Callable[..., Local], poison: dict[str, Any]) -> None:
    """Without another batch it is certain to: after one more round, with all that was tried."""
    run = start(30, **poison)
    run.ends_with(1)
    assert (run.status["state"], run.status["rounds"], len(run.status["rollbacks"])) == ("Failed", 2, 1)
    failed = next(each["message"] for each in run.status["conditions"] if each["type"] == "Failed")
    assert "and durable storage has no older state: the loss is nan at step 11 (before: " in failed


def test_nothing_is_kept_while_the_loss_is_up(start: Callable[..., Local], tmp_path: Path) -> None:
    """Three batches of noise after a hundred of text: the state before the first of them is gone on from."""
    chance = random.Random(SEED)
    noise = {place: bytes(chance.choices(b"0123456789#$%&*+<=>@", k=LENGTH - 1)) for place in range(400, 412)}
    run = start(
        120,
        data=text(tmp_path / "text.txt", noise),
        training=training(120, 0.01),
        recovery={"numerics": "rollbackAndSkip"},
    )
    run.ends_with(0)
    [made] = run.status["rollbacks"]
    assert (made["reason"], made["step"], made["skip"]) == ("LossSpike", 102, {"first": 396, "end": 412})
    assert run.status["checkpoint"]["restoredStep"] <= 100
    assert (run.status["state"], run.status["progress"]["step"]) == ("Complete", 120)
    assert run.status["progress"]["loss"] < 1.0


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
