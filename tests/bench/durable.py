"""`make bench-durable`: what a durable checkpoint costs, beside DeepSpeed's, torch's and a plain file of its bytes.

Two workers with 1 GB of training state (fp32 masters and Adam's moments, ZeRO 2) save and restore it in turn by each
method, on the same disk, in one run; figures are medians over the repetitions, ratios are medians of each repetition's.
A save counts as over when its bytes are synced; what a method does not sync itself is synced and timed after it. Caches
are dropped before every read. A read is over when the bytes are where they are needed; the whole restore, which derives
the model's weights from the masters with a collective, is a row of its own. Nothing fails on a slow machine; the table
says what was met.

Must be run with `python -P`: next to this file, `import operator` would find it instead of the standard library's.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from llmtrain_trainer.checkpoint.pieces import Fill, Piece
from llmtrain_trainer.checkpoint.state import EngineState

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "build" / "bench" / "durable.json"
WORKERS = 2
BLOCK = 16 * 2**20
SPEC = {
    "model": {
        "architecture": {"hiddenSize": 1024, "layers": 6, "heads": 8, "intermediateSize": 3136, "tieEmbeddings": True}
    },
    "data": {"source": "-", "sequenceLength": 16},
    "training": {"maxSteps": 1, "globalBatchSize": WORKERS, "precision": "fp32"},
    "deepspeed": {"stage": 2},
}


@dataclass(frozen=True)
class Row:
    what: str
    value: float
    unit: str
    target: str
    met: bool | None
    detail: str


@dataclass(frozen=True)
class Sample:
    """One save and restore. Seconds: that training stood still, until the bytes were safe, until they were back, until
    training could go on."""

    stall: float
    write: float
    read: float
    restore: float
    size: int


# The workers


class TimedState(EngineState):
    """Remembers how long the pieces took to be `filled`, in seconds."""

    filled = 0.0

    def load(self, scalars: dict[str, Any], fill: Fill) -> None:
        def timed(pieces: list[Piece]) -> None:
            began = time.perf_counter()
            fill(pieces)
            self.filled = time.perf_counter() - began

        super().load(scalars, timed)


class Bench:
    """One worker: an engine with state, and each method of saving it below `folder`."""

    def __init__(self, folder: Path) -> None:
        import torch

        from llmtrain_trainer import config, distributed, models
        from llmtrain_trainer.data.tokenizers import ByteTokenizer
        from llmtrain_trainer.engine import start_engine

        self.folder = folder
        self.worker = distributed.join()
        parsed = config.parse(json.dumps(SPEC))
        self.engine = start_engine(parsed, models.build_model(parsed, ByteTokenizer()), self.worker)
        tokens = torch.randint(0, 256, (1, 16))
        self.engine.backward(self.engine(input_ids=tokens, labels=tokens).loss)
        self.engine.step()  # Adam's moments are there from the first step on
        self.state = TimedState(self.engine)
        self.saver = self._saver()
        self.step = 0

    def methods(self) -> dict[str, Callable[[], Sample]]:
        return {"ours": self.ours, "deepspeed": self.deepspeed, "torch": self.torch, "plain": self.plain}

    def ours(self) -> Sample:
        """The trainer's own saver and restore."""
        from llmtrain_trainer.checkpoint.restore import choose, load

        self.step += 1
        stored = {"engine": self.state.scalars()}
        stall = self.saver.begin(self.step, self.state.pieces(), self.state.rng(), stored)
        self.saver.wait()
        outcome = self.saver.take()
        assert outcome is not None
        assert outcome.committed, outcome.message
        source = choose(self.saver._catalog, None)
        assert source is not None
        restore = self._read(lambda: load(self.state, source, self.worker))
        # To the commit; old checkpoints go after it.
        return Sample(stall, outcome.seconds, self.state.filled, restore, outcome.size)

    def deepspeed(self) -> Sample:
        """The engine's save_checkpoint and load_checkpoint."""
        where = self.folder / "deepspeed"
        stall = self._timed(lambda: self.engine.save_checkpoint(str(where), tag="bench"))
        self.worker.gather(None)
        write = stall + self._timed(lambda: _sync(where) if self.worker.is_first else None)
        read = self._read(lambda: self.engine.load_checkpoint(str(where), tag="bench"))
        return Sample(stall, write, read, read, _size(where))

    def torch(self) -> Sample:
        """torch.distributed.checkpoint.async_save of the same tensors, and load."""
        from torch.distributed import checkpoint

        where = self.folder / f"torch-{self.step}"
        state = {f"{p.parameter}.{p.kind}.{p.start}": p.tensor for p in self.state.pieces()}
        writer = checkpoint.FileSystemWriter(str(where), thread_count=2)
        began = time.perf_counter()
        future = checkpoint.async_save(state, storage_writer=writer)
        stall = time.perf_counter() - began
        future.result()  # type: ignore[union-attr]  # a Future unless staging is asked for apart
        write = time.perf_counter() - began
        self.worker.gather(None)
        size = _size(where)
        read = self._read(lambda: checkpoint.load(state, checkpoint_id=str(where)))
        self.worker.gather(None)
        if self.worker.is_first:
            shutil.rmtree(where)
        return Sample(stall, write, read, read, size)

    def plain(self) -> Sample:
        """All workers' bytes, one after the other, to one file, by one process."""
        where = self.folder / "plain"
        stalls, reads, size = 0.0, 0.0, 0
        if self.worker.is_first:
            data = self.saver.staging.data()
            began = time.perf_counter()
            with where.open("wb", buffering=0) as file:
                for _ in range(WORKERS):
                    for at in range(0, len(data), BLOCK):
                        file.write(data[at : at + BLOCK])
                os.fsync(file.fileno())
            stalls = time.perf_counter() - began
            size = where.stat().st_size
        into = bytearray(BLOCK)

        def read() -> None:
            if self.worker.is_first:
                with where.open("rb", buffering=0) as file:
                    while file.readinto(into):
                        pass

        reads = self._read(read)
        return Sample(stalls, stalls, reads, reads, size)

    def _saver(self) -> Any:
        from llmtrain_trainer.checkpoint.accord import join_accord
        from llmtrain_trainer.checkpoint.catalog import Catalog
        from llmtrain_trainer.checkpoint.saver import Saver, Writer
        from llmtrain_trainer.checkpoint.staging import Staging
        from llmtrain_trainer.checkpoint.storage import open_storage

        rank, size = self.worker.rank, self.worker.world_size
        catalog = Catalog(open_storage(f"file://{self.folder}/ours"))
        writer = Writer(rank, size, "bench", 1, keep=1)
        saver = Saver(catalog, join_accord(rank, size, "bench"), writer, Staging(self.worker.device))
        saver.prepare(self.state.pieces())
        saver.wait()
        return saver

    def _read(self, restore: Callable[[], Any]) -> float:
        self.worker.gather(None)
        if self.worker.is_first:
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("1")
        self.worker.gather(None)
        seconds = self._timed(restore)
        self.worker.gather(None)
        return seconds

    @staticmethod
    def _timed(work: Callable[[], Any]) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in _files(folder))


def _sync(folder: Path) -> None:
    for path in _files(folder):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.close(file)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def work(folder: Path, repetitions: int) -> None:
    """A worker's life: every method in turn, once to warm up and then `repetitions` times."""
    bench = Bench(folder)
    samples: dict[str, list[Sample]] = {name: [] for name in bench.methods()}
    for repetition in range(repetitions + 1):
        for name, method in bench.methods().items():
            bench.worker.gather(None)
            os.sync()
            sample = _slowest(bench.worker.gather(method()))
            if repetition:
                samples[name].append(sample)
    if bench.worker.is_first:
        told = {name: [dataclasses.asdict(sample) for sample in each] for name, each in samples.items()}
        (folder / "samples.json").write_text(json.dumps(told))
    os._exit(0)


def _slowest(samples: list[Sample]) -> Sample:
    """Training waits for its slowest worker."""
    return Sample(*(max(values) for values in zip(*map(dataclasses.astuple, samples), strict=True)))


# The table


def measure(repetitions: int) -> dict[str, list[Sample]]:
    """Run the workers, on the disk that the repository is on."""
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RESULT.parent) as name, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        workers = []
        for rank in range(WORKERS):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORKERS, "MASTER_PORT": port}
            environment = {key: str(value) for key, value in place.items()} | {
                "MASTER_ADDR": "127.0.0.1",
                "OMP_NUM_THREADS": "1",
                "DS_ACCELERATOR": "cpu",
                "CUDA_VISIBLE_DEVICES": "",
            }
            command = [sys.executable, "-P", __file__, "--worker", name, "--repetitions", str(repetitions)]
            workers.append(subprocess.Popen(command, env=os.environ | environment))
        for worker in workers:
            if worker.wait():
                raise SystemExit(f"a worker ended with {worker.returncode}")
        told = json.loads((Path(name) / "samples.json").read_text())
    return {name: [Sample(**sample) for sample in each] for name, each in told.items()}


def rows(samples: dict[str, list[Sample]]) -> list[Row]:
    """The figures and what was asked of them."""
    titles = {
        "ours": "llmtrain",
        "deepspeed": "DeepSpeed save_checkpoint",
        "torch": "torch async_save",
        "plain": "plain sequential file",
    }

    def median(name: str, value: Callable[[Sample], float]) -> float:
        return statistics.median(value(sample) for sample in samples[name])

    def ratio(other: str, value: Callable[[Sample], float]) -> tuple[float, str]:
        each = [value(mine) / value(its) for mine, its in zip(samples["ours"], samples[other], strict=True)]
        return statistics.median(each), f"{min(each):.3f} to {max(each):.3f} in {len(each)} repetitions"

    def write(sample: Sample) -> float:
        return sample.size / sample.write / 1e6

    def read(sample: Sample) -> float:
        return sample.size / sample.read / 1e6

    def restore(sample: Sample) -> float:
        return sample.size / sample.restore / 1e6

    found = []
    for name, title in titles.items():
        size = f"{median(name, lambda s: s.size) / 1e6:,.0f} MB"
        if name != "plain":
            found.append(Row(f"{title}: stall", median(name, lambda s: s.stall) * 1e3, "ms", "", None, size))
        found.append(Row(f"{title}: write, synced", median(name, write), "MB/s", "", None, size))
        found.append(Row(f"{title}: read, cold", median(name, read), "MB/s", "", None, size))
    whole = "with the weights derived from the masters, by a collective"
    found.append(Row("llmtrain: whole restore, cold", median("ours", restore), "MB/s", "", None, whole))
    stall, spread = ratio("deepspeed", lambda s: s.stall)
    found.append(Row("stall / DeepSpeed's save", stall, "x", "<= 0.25", stall <= 0.25, spread))
    for what, value in (("write", write), ("read", read)):
        share, spread = ratio("plain", value)
        found.append(Row(f"{what} / plain sequential", share, "x", ">= 0.8", share >= 0.8, spread))
    share, spread = ratio("plain", restore)
    found.append(Row("whole restore / plain sequential", share, "x", "", None, spread))
    return found


def show(found: list[Row]) -> None:
    table = Table("what", "value", "unit", "target", "met", "detail")
    for row in found:
        met = "" if row.met is None else "yes" if row.met else "NO"
        table.add_row(
            row.what,
            f"{row.value:,.3f}" if row.unit == "x" else f"{row.value:,.1f}",
            row.unit,
            row.target,
            met,
            row.detail,
        )
    Console(width=140).print(table)


@click.command()
@click.option("--repetitions", default=5, show_default=True)
@click.option("--worker", type=click.Path(path_type=Path), hidden=True, help="Be a worker in this folder.")
def main(repetitions: int, worker: Path | None) -> None:
    """Measure durable checkpoints."""
    if worker is not None:
        work(worker, repetitions)
    found = rows(measure(repetitions))
    RESULT.write_text(json.dumps({"rows": [vars(row) for row in found]}, indent=2) + "\n")
    show(found)


if __name__ == "__main__":
    main()
