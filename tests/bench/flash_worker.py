"""One worker of `make bench-flash`: `python -P flash_worker.py FOLDER RANK HOST GIGABYTES REPLICAS`.

Everything that is compared is measured here, in turn, by both workers at the same time. Results: FOLDER/RANK.json.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llmtrain_operator.contract import names
from llmtrain_trainer import distributed
from llmtrain_trainer.checkpoint.extents import Copier, Extents
from llmtrain_trainer.checkpoint.pieces import MASTER, Fill, Piece
from llmtrain_trainer.config import Flash
from llmtrain_trainer.flash.protocol import Pass
from llmtrain_trainer.flash.recall import Recall
from llmtrain_trainer.flash.session import Session
from llmtrain_trainer.flash.snapshots import SLOTS
from llmtrain_trainer.flash.store import Store
from llmtrain_trainer.progress import Reporter

REPETITIONS = 15
ROUND = 1
PATIENCE = 120.0
DEVICE_STEPS = 6
CPU_SECONDS = 2.0


class FlatState:
    """A ZeRO partition as DeepSpeed holds it: flat fp32 masters and Adam's moments, of many parameters each."""

    def __init__(self, size: int, rank: int) -> None:
        self._rank = rank
        elements = size // 12
        self.flats = {kind: torch.rand(elements) for kind in (MASTER, "exp_avg", "exp_avg_sq")}
        self._count = 300  # parameters of a model of this size

    def pieces(self) -> list[Piece]:
        found = []
        for kind, flat in self.flats.items():
            each = -(-len(flat) // self._count)
            for number in range(self._count):
                part = flat[number * each : (number + 1) * each]
                if len(part):
                    found.append(Piece(f"rank-{self._rank}.layer-{number}", kind, 0, part))
        return found

    expected = pieces

    def identity(self) -> tuple[int, ...]:
        return tuple(flat.data_ptr() for flat in self.flats.values())

    def shapes(self) -> dict[str, Any]:
        return {"parameters": {}}

    def numbers(self) -> dict[str, Any]:
        return {"optimizer": {}, "counters": {}}

    def rng(self) -> dict[str, Any]:
        from llmtrain_trainer.checkpoint import rng

        return rng.describe()

    def load(self, scalars: dict[str, Any], fill: Fill) -> None:
        del scalars
        fill(self.pieces())

    def load_rng(self, stored: dict[str, Any]) -> None:
        del stored

    def reseed(self, step: int) -> None:
        del step


class Bench:
    """A worker with its state, its session and its store."""

    def __init__(self, folder: Path, rank: int, size: int, replicas: int) -> None:
        self.folder, self.rank, self.size, self.replicas = folder, rank, size, replicas
        self.worker = distributed.join()
        self.state = FlatState(size, rank)
        self.layout = Extents.of(self.state.pieces())
        self.reporter = Reporter(rank, 0)
        self.store = Store(folder / str(rank), os.environ[names.ENV_JOB_UID])
        self.session = Session(Flash(replicas=replicas), self.worker, self.reporter, self.store)
        self.warm = torch.zeros(self.layout.size, dtype=torch.uint8)  # where a plain memcpy goes
        self.step = 0

    def together(self) -> None:
        self.worker.gather(None)

    def slowest(self, seconds: float) -> float:
        return max(self.worker.gather(seconds))

    def memcpy(self) -> float:
        """The same bytes, into memory that was touched."""
        self.together()
        began = time.perf_counter()
        Copier(torch.device("cpu")).copy(self.layout.extents, self.warm)
        return self.slowest(time.perf_counter() - began)

    def snapshot(self) -> float:
        self.step += 1
        self.together()
        stall = self.session.snapshots.take(self.state, {"step": self.step}, nominate=True)
        return self.slowest(stall)

    def settle(self) -> float:
        """Until the newest snapshot is safe on all workers; the seconds that took."""
        began = time.perf_counter()
        while True:
            safe = self.worker.sums(self.session.snapshots.acknowledged)[0] >= self.worker.world_size
            if safe:
                self.session.snapshots.commit()
                return time.perf_counter() - began
            if time.perf_counter() - began > PATIENCE:
                raise SystemExit("a snapshot did not become safe")
            time.sleep(0.002)

    def until_ready(self) -> float:
        began = time.perf_counter()
        while len(self.session.snapshots._rooms) < SLOTS:
            time.sleep(0.01)
            assert time.perf_counter() - began < PATIENCE
        return time.perf_counter() - began

    def run(self) -> dict[str, Any]:
        self.session.recall.survey()
        before = _resident()
        self.session.begin(self.state, {}, None)
        reserving = self.until_ready()
        self.memcpy()
        first = self.snapshot()
        copy_seconds = [self.settle()]
        found: dict[str, list[float]] = {"memcpy": [], "snapshot": []}
        for _ in range(REPETITIONS):
            found["memcpy"].append(self.memcpy())
            found["snapshot"].append(self.snapshot())
            copy_seconds.append(self.settle())
        overhead = _resident() - before
        told: dict[str, Any] = {
            "size": self.layout.size,
            "reserve": reserving,
            "first": first,
            "replicate": copy_seconds[1:],
            "overhead": overhead,
            **found,
        }
        told |= self.restores()
        told |= self.slow_downs(sorted(found["memcpy"])[len(found["memcpy"]) // 2])
        if self.replicas:
            told |= self.contenders()
        return told

    # Restoring

    def restores(self) -> dict[str, Any]:
        found: dict[str, list[float]] = {"restore_local": [], "restore_peer": [], "tcp": []}
        for _ in range(5):
            found["restore_local"].append(self.restore(own=True))
        if self.replicas:
            for _ in range(5):
                found["tcp"].append(self.tcp())
                found["restore_peer"].append(self.restore(own=False))
        return found

    def restore(self, *, own: bool) -> float:
        """The state from memory into place: the own one, or (of rank 0, the others at rest) from the other member's."""
        reference = self.state.flats[MASTER][:1000].clone()
        mine = self.rank == 0 or own
        if mine:
            for flat in self.state.flats.values():
                flat.zero_()
        hidden = self.folder / f"{self.rank}.hidden"
        if not own and self.rank == 0:
            _move(self.store.root, hidden, "own-*.head")
        recall = Recall(self.store, self.worker, self.rank, Pass(ROUND, os.environ[names.ENV_FLASH_KEY]))
        recall.survey()
        seconds = 0.0

        class Timed(FlatState):
            def __init__(self, inner: FlatState) -> None:
                self.inner = inner

            def load(self, scalars: dict[str, Any], fill: Fill) -> None:
                nonlocal seconds
                del scalars
                began = time.perf_counter()
                fill(self.inner.pieces() if mine else [])
                seconds = time.perf_counter() - began

        recalled = recall.load(Timed(self.state), 0)
        assert recalled is not None
        assert not recalled.skipped, recalled.skipped
        if not own and self.rank == 0:
            assert recalled.peers, recalled
            _move(hidden, self.store.root, "own-*.head")
        assert torch.equal(self.state.flats[MASTER][:1000], reference)
        return self.worker.from_first(seconds) if not own else self.slowest(seconds)

    def tcp(self) -> float:
        """As many bytes from rank 1 to rank 0 by plain TCP, into touched memory."""
        block = 4 * 2**20
        seconds = 0.0
        if self.rank == 0:
            host = (self.folder / "0.address").read_text().split()[0]
            with socket.create_server((host, 0)) as server:
                self.worker.from_first(server.getsockname()[1])
                link, _ = server.accept()
                with link:
                    view = memoryview(self.warm.numpy())  # type: ignore[arg-type]
                    began = time.perf_counter()
                    while view:
                        view = view[link.recv_into(view, min(len(view), block)) :]
                    seconds = time.perf_counter() - began
        else:
            host = (self.folder / "0.address").read_text().split()[0]
            port = self.worker.from_first(0)
            with socket.create_connection((host, port)) as link:
                link.sendall(memoryview(self.warm.numpy()))  # type: ignore[arg-type]
        self.together()
        return self.worker.from_first(seconds)

    # What it costs a job

    def slow_downs(self, memcpy: float) -> dict[str, Any]:
        """Steps of a job whose device computes while the CPU waits, and of one that computes on the CPU."""
        if not self.replicas:
            return {}
        matrix = torch.rand(768, 768)

        def compute() -> None:
            end = time.process_time() + CPU_SECONDS
            while time.process_time() < end:
                matrix @ matrix

        device = self.slow_down(lambda: time.sleep(50 * memcpy), DEVICE_STEPS)
        return {"device_bound": device, "cpu_bound": self.slow_down(compute, 5), "cpu_step": CPU_SECONDS}

    def slow_down(self, work: Callable[[], None], steps: int) -> float:
        """Seconds with a snapshot and a copy at every step, over those without."""
        plain = self.timed(work, steps, snapshots=False)
        return self.timed(work, steps, snapshots=True) / plain

    def timed(self, work: Callable[[], None], steps: int, *, snapshots: bool) -> float:
        self.together()
        began = time.perf_counter()
        for _ in range(steps):
            work()
            safe = self.worker.sums(snapshots and self.session.snapshots.acknowledged)[0]
            if safe >= self.worker.world_size:
                self.session.snapshots.commit()
            if snapshots:
                self.step += 1
                self.session.snapshots.take(self.state, {"step": self.step}, nominate=True)
        took = self.slowest(time.perf_counter() - began)
        if snapshots:
            self.settle()
        return took

    # Others, the same bytes

    def contenders(self) -> dict[str, Any]:
        from torch.distributed import checkpoint

        state = {f"{kind}-{self.rank}": flat for kind, flat in self.state.flats.items()}
        found: dict[str, list[float]] = {"torch_save": [], "dcp_async": []}
        for number in range(3):
            path = self.folder / f"{self.rank}.pt"
            self.together()
            began = time.perf_counter()
            torch.save(state, path)
            found["torch_save"].append(self.slowest(time.perf_counter() - began))
            path.unlink()
            where = self.folder / f"dcp-{number}"
            self.together()
            began = time.perf_counter()
            future = checkpoint.async_save(state, storage_writer=checkpoint.FileSystemWriter(str(where)))
            stall = time.perf_counter() - began
            future.result()  # type: ignore[union-attr]  # its thread uses the process group until then
            found["dcp_async"].append(self.slowest(stall))
            if self.rank == 0:
                shutil.rmtree(where)
        return found


def _move(source: Path, target: Path, pattern: str) -> None:
    target.mkdir(exist_ok=True)
    for path in source.glob(pattern):
        path.replace(target / path.name)


def _resident() -> int:
    """Bytes of this process's own memory, without what it shares."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    random.seed(rank)
    bench = Bench(folder, rank, int(float(sys.argv[4]) * 1e9), int(sys.argv[5]))
    result = bench.run()
    (folder / f"{rank}.json").write_text(json.dumps(result))
    bench.together()
    os._exit(0)
