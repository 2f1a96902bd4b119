"""Workers and agents that are killed at random: `python flash_fleet.py KILLS SEED FOLDER RESULT`.

Two pods, each with a flash store, an agent and a worker, train a state that is a function of its step alone, so that
what is restored can be proved bit by bit. Each round a process (a worker, an agent, both of a pod), or a whole pod with
its memory, is killed at a random instant: while something is restored, copied, published, sent or persisted. Workers
are forked from this process after its imports. Real kernel, real SIGKILL, real sockets; no cluster.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import deepspeed  # noqa: F401 - before the fork
import torch
import torch._dynamo
from torch.distributed import TCPStore

from llmtrain_operator.contract import names
from llmtrain_trainer import distributed
from llmtrain_trainer.checkpoint import rng
from llmtrain_trainer.checkpoint.beginning import Beginning
from llmtrain_trainer.checkpoint.cadence import Votes
from llmtrain_trainer.checkpoint.keeper import Keeper
from llmtrain_trainer.checkpoint.pieces import MASTER, Piece
from llmtrain_trainer.checkpoint.standing import Standing
from llmtrain_trainer.config import Checkpoint, Config, Data, Durable, Flash, Model, Training
from llmtrain_trainer.progress import Reporter
from llmtrain_trainer.signals import Wishes

PODS = 2
ELEMENTS = 600_000
JOB = "job"
ROOT = Path(__file__).parents[2]
START = 60.0
"""Seconds until all workers of a round must train; the machine may be busy."""
VICTIMS = ("worker", "worker", "workers", "agent", "pod", "memory")


def state_at(step, rank):
    """What a rank's state is after `step` steps: of a later step every element is another."""
    return torch.arange(ELEMENTS, dtype=torch.int64).mul_(2654435761).add_(1_000_003 * step + rank).to(torch.float32)


class TwoHalves:
    """A state of which every rank owns one half, and restores it."""

    def __init__(self, rank):
        self.rank, self.tensor = rank, state_at(0, rank)

    def pieces(self):
        return [Piece("weight", MASTER, self.rank * ELEMENTS, self.tensor)]

    expected = pieces

    def identity(self):
        return (self.tensor.data_ptr(),)

    def shapes(self):
        return {"parameters": {"weight": [PODS * ELEMENTS]}}

    def numbers(self):
        return {"optimizer": {}, "counters": {}}

    def scalars(self):
        return self.shapes() | self.numbers()

    def rng(self):
        return rng.describe()

    def load(self, scalars, fill):
        assert scalars["parameters"] == self.shapes()["parameters"]
        fill(self.pieces())

    def load_rng(self, stored):
        rng.load(stored)

    def reseed(self, step):
        raise AssertionError(f"the world is always the same, also at step {step}")


class OwnState(Beginning):
    """With our state instead of DeepSpeed's."""

    def _make_state(self, engine, *, needed):
        del needed
        self._state, self._model = engine, {"config": {}, "tokenizer": "byte"}


def work(rank, folder, pipe):
    """A worker's life: restore, prove, train until killed. Tells what it did, a line each."""

    def tell(**fields):
        os.write(pipe, (json.dumps(fields) + "\n").encode())

    worker = distributed.join()
    durable = Durable(f"file://{folder}/durable", every_steps=7, keep=2)
    checkpoint = Checkpoint(flash=Flash(replicas=1), durable=durable)
    config = Config(Model("tiny"), Data("/text"), Training(10**9), checkpoint=checkpoint)
    reporter = Reporter(rank, 10**9)
    keeper = Keeper(config, worker, reporter, Wishes())
    keeper._beginning.__class__ = OwnState
    state = TwoHalves(rank)
    standing = keeper.restore(state, keeper.choose())
    step = standing.step if standing else 0
    exact = torch.equal(state.tensor, state_at(step, rank))
    told = reporter.progress.checkpoints
    tell(
        restored=step, exact=exact, where=told.restored_from if told else "", skipped=list(told.skipped if told else ())
    )
    while True:
        step += 1
        state.tensor.copy_(state_at(step, rank))
        keeper.before_update()
        votes = Votes.of(worker.sums(*keeper.votes(step).values()))
        standing = Standing(step, step, 1, True, 16, "text", "spec")
        keeper.settle(votes, lambda standing=standing: standing)
        flash, saved = reporter.progress.flash, reporter.progress.checkpoints
        committed = max(flash.committed or 0, (saved.step or 0) if saved else 0)
        tell(step=step, committed=committed, saved=(saved.step or 0) if saved else 0)


class Pod:
    """A store and an agent."""

    def __init__(self, folder, rank):
        self.folder, self.rank = folder, rank
        self.store = folder / str(rank)
        self.agent = None
        self.worker = 0

    def ensure(self):
        """Have the agent run."""
        self.store.mkdir(exist_ok=True)
        if self.agent is not None and self.agent.poll() is None:
            return
        script = ROOT / "tests" / "support" / "flash_agent.py"
        command = [sys.executable, "-P", str(script), str(self.folder), str(self.rank), "127.0.0.1", "1", JOB]
        self.agent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.agent.stdout.readline() == "ok\n"

    def enter(self, number):
        self.agent.stdin.write(f"{number} key-{number} {PODS}\n")
        self.agent.stdin.flush()
        assert self.agent.stdout.readline() == "ok\n"

    def environment(self, number, port):
        host, own = (self.folder / f"{self.rank}.address").read_text().split()
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(PODS),
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "DS_ACCELERATOR": "cpu",
            names.ENV_JOB_UID: JOB,
            names.ENV_ROUND: str(number),
            names.ENV_FLASH: str(self.store),
            names.ENV_FLASH_SOCKET: str(self.folder / f"{self.rank}.notices"),
            names.ENV_FLASH_ADDRESS: f"{host}:{own}",
            names.ENV_FLASH_KEY: f"key-{number}",
        }

    def fork(self, number, port):
        """Start a worker; the end of a pipe that it talks to."""
        ours, theirs = os.pipe()
        self.worker = os.fork()
        if self.worker == 0:
            os.close(ours)
            os.environ.update(self.environment(number, port))
            torch.set_num_threads(1)
            with contextlib.suppress(BaseException):
                try:
                    work(self.rank, self.folder, theirs)
                except Exception:  # noqa: BLE001 - told to the parent
                    os.write(theirs, (json.dumps({"error": traceback.format_exc()}) + "\n").encode())
            os._exit(1)
        os.close(theirs)
        return ours

    def kill_worker(self):
        if self.worker:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.worker, signal.SIGKILL)
            os.waitpid(self.worker, 0)
            self.worker = 0

    def kill_agent(self):
        self.agent.kill()
        self.agent.wait()
        self.agent.stdin.close()
        self.agent.stdout.close()


class Listener:
    """Reads what the workers say."""

    def __init__(self, pipes):
        self.pipes, self.rests, self.lines = pipes, [b""] * len(pipes), []

    def listen(self, until, enough=lambda _: False):
        """Until a time or until it is enough; a pipe that ended says no more."""
        while (left := until - time.monotonic()) > 0 and not enough(self.lines):
            ready, _, _ = select.select([pipe for pipe in self.pipes if pipe is not None], [], [], left)
            for pipe in ready:
                number = self.pipes.index(pipe)
                data = os.read(pipe, 65536)
                if not data:
                    os.close(pipe)
                    self.pipes[number] = None
                self.rests[number] += data
                *whole, self.rests[number] = self.rests[number].split(b"\n")
                self.lines += [json.loads(line) | {"rank": number} for line in whole]
            if all(pipe is None for pipe in self.pipes):
                return

    def close(self):
        self.listen(time.monotonic() + 5, lambda _: all(pipe is None for pipe in self.pipes))
        for pipe in self.pipes:
            if pipe is not None:
                os.close(pipe)


class Campaign:
    """Kills, and what was said before each."""

    def __init__(self, folder, seed):
        self.pods = [Pod(folder, rank) for rank in range(PODS)]
        self.dice = random.Random(seed)
        self.committed = self.saved = 0
        self.exposed = None
        self.events = []
        self.after = ""

    def run(self, kills):
        for number in range(1, kills + 2):
            for pod in self.pods:
                pod.ensure()
            for pod in self.pods:
                pod.enter(number)
            victim = self.dice.choice(VICTIMS) if number <= kills else "workers"
            target = self.dice.choice(self.pods)
            self.note(*self.round(number, victim, target))
            self.remember(victim, target)
        for pod in self.pods:
            pod.kill_agent()
        return self.events

    def round(self, number, victim, target):
        """One round up to its end by a kill: what the workers said, and whether it was killed as it began."""
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        listener = Listener([pod.fork(number, store.port) for pod in self.pods])
        # Now and then in the midst of restoring, mostly while it trains.
        early = self.dice.random() < 0.25
        if early:
            listener.listen(time.monotonic() + self.dice.uniform(0.0, 0.8))
        else:
            listener.listen(time.monotonic() + START, _all_train)
            listener.listen(time.monotonic() + self.dice.uniform(0.0, 0.6))
        if victim in ("worker", "pod", "memory"):
            target.kill_worker()
        if victim in ("agent", "pod", "memory"):
            target.kill_agent()
        for pod in self.pods:
            pod.kill_worker()
        listener.close()
        if victim == "memory":
            shutil.rmtree(target.store)
        return listener.lines, early

    def note(self, lines, early):
        restored = [line for line in lines if "restored" in line]
        self.events.append(
            {
                "after": self.after,
                "restored": [line["restored"] for line in restored],
                "where": [line["where"] for line in restored],
                "exact": all(line["exact"] for line in restored),
                "lost": max([max(0, self.committed - line["restored"]) for line in restored], default=0),
                "committed": self.committed,
                "skipped": [each for line in restored for each in line["skipped"]],
                "errors": [line["error"] for line in lines if "error" in line and not _is_peer_lost(line["error"])],
                "started": early or len(restored) == PODS,
            }
        )
        steps = [line for line in lines if "committed" in line]
        self.committed = max([self.committed, *(line["committed"] for line in steps)])
        self.saved = max([self.saved, *(line["saved"] for line in steps)])
        if any(line["committed"] > line["saved"] for line in steps):
            self.exposed = None  # there are copies of this round again

    def remember(self, victim, target):
        self.after = f"{victim} of {target.rank}"
        if victim == "memory":
            if self.exposed is not None and self.exposed != target.rank:
                self.committed = self.saved  # both memories went before there were new copies: storage has the rest
            self.exposed = target.rank


def _all_train(lines):
    return sum("restored" in line for line in lines) == PODS or any("error" in line for line in lines)


def _is_peer_lost(text):
    """A collective breaks when the other worker is gone: that is what was done to it."""
    return any(
        word in text for word in ("gloo", "Connection closed", "DistNetworkError", "DistStoreError", "recvValue")
    )


if __name__ == "__main__":
    outcome = Campaign(Path(sys.argv[3]), int(sys.argv[2])).run(int(sys.argv[1]))
    Path(sys.argv[4]).write_text(json.dumps(outcome))
