"""DLRover's flash save, measured as its users have it: a contender of the flash benchmark.

Workers with a few large fp32 tensors each (a rank's flat masters and Adam's moments) save them by DLRover's public
`DdpCheckpointer` to memory, each its own shard, while DLRover's saver runs in a process of its own as `dlrover-run`
has it. Beside each save the same bytes are copied into shared memory that has been written before: the floor of any
snapshot in memory. Then new workers restore. The raw numbers go to a JSON file; nothing is judged here.

Must be run with `python -P` by the Python of `dlrover_env.python_of_dlrover`, with `operator` and `trainer_image` on
PYTHONPATH: `dlrover_env.measure` does. Leaves no process and no shared memory, whatever happens to the workers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from llmtrain_trainer.flash.engines import dlrover_shims

TENSORS = 3
THREADS = "1"  # as many as cores for each worker, on this machine; both copies get the same
ATTEMPT = 600.0
"""Seconds for all workers of one phase."""


# The workers


def state_of(size: int, rank: int) -> dict[str, Any]:
    """The state of one worker, about `size` bytes; every element has been written."""
    import torch

    names = ("master", "exp_avg", "exp_avg_sq")
    return {name: torch.full((size // TENSORS // 4,), float(rank + 1)) for name in names}


def save(size: int, saves: int, folder: Path) -> dict[str, Any]:
    """`saves` memory saves and as many plain copies, in turn, all workers at the same time."""
    import torch
    import torch.distributed

    rank = torch.distributed.get_rank()
    state = state_of(size, rank)
    total = sum(tensor.nbytes for tensor in state.values())
    floor = torch.frombuffer(mmap.mmap(-1, total), dtype=torch.float32)
    floor.fill_(0.0)  # its pages are there from here on
    checkpointer, in_memory = _checkpointer(folder)
    stalls: list[float] = []
    copies: list[float] = []
    skipped = 0
    for step in range(1, saves + 1):
        for tensor in state.values():
            tensor.add_(1.0)
        torch.distributed.barrier()
        began = time.perf_counter()
        _copy(state, floor)
        copies.append(time.perf_counter() - began)
        torch.distributed.barrier()
        began = time.perf_counter()
        checkpointer.save_checkpoint(step, state, storage_type=in_memory)
        stalls.append(time.perf_counter() - began)
        skipped += checkpointer._engine._cached_step != step
    return {"rank": rank, "bytes": total, "stalls": stalls, "copies": copies, "skipped": skipped}


def restore(size: int, saves: int, folder: Path) -> dict[str, Any]:
    """DLRover hands out views of its memory; what a worker can train with is a copy."""
    import torch
    import torch.distributed

    rank = torch.distributed.get_rank()
    live = state_of(size, rank)
    checkpointer, _ = _checkpointer(folder)
    torch.distributed.barrier()
    began = time.perf_counter()
    held = checkpointer.load_checkpoint()
    viewed = time.perf_counter() - began
    for name, tensor in live.items():
        tensor.copy_(held[name])
    copied = time.perf_counter() - began
    expected = float(rank + 1 + saves)
    right = all(bool((tensor == expected).all()) for tensor in live.values())
    return {"rank": rank, "view": viewed, "restore": copied, "right": right}


def _copy(state: dict[str, Any], into: Any) -> None:
    at = 0
    for tensor in state.values():
        into[at : at + tensor.numel()].copy_(tensor)
        at += tensor.numel()


def _checkpointer(folder: Path) -> tuple[Any, Any]:
    workers = int(os.environ["LOCAL_WORLD_SIZE"])
    in_memory = dlrover_shims.module("checkpointer").StorageType.MEMORY
    made = dlrover_shims.module("ddp").DdpCheckpointer(str(folder), local_shard_num=workers, global_shard_num=workers)
    return made, in_memory


def work(options: argparse.Namespace) -> None:
    """A worker's life. It ends without destructors: DLRover's fail on memory that is still viewed."""
    import torch.distributed

    signal.alarm(int(ATTEMPT))  # should the parent be killed
    torch.distributed.init_process_group("gloo")
    phase = save if options.phase == "save" else restore
    told = phase(options.bytes, options.saves, options.folder)
    (options.folder / f"{options.phase}-{told['rank']}.json").write_text(json.dumps(told))
    torch.distributed.barrier()
    os._exit(0)


def keep() -> None:
    """DLRover's saver, until the parent closes our input or ends."""
    saver = dlrover_shims.Saver(dlrover_shims.run_id())
    sys.stdin.read()
    saver.close()
    os._exit(0)


# The parent


class Run:
    """The processes of one measurement, and their end."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._folder = options, folder
        self._name = f"llmtrain-dlrover-{uuid.uuid4().hex[:8]}"
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Run:
        self._saver = self._start("keep", {}, subprocess.PIPE)
        return self

    def __exit__(self, *_: object) -> None:
        if self._saver.stdin:
            self._saver.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._saver.wait(15)
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(15)
        dlrover_shims.remove_leftovers(self._name)

    def phase(self, name: str) -> list[dict[str, Any]]:
        """Run all workers through a phase; what each measured."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        workers = []
        count = self._options.workers
        for rank in range(count):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            node = {"MASTER_PORT": port, "NODE_RANK": 0, "GROUP_RANK": 0, "GROUP_WORLD_SIZE": 1}
            environment = {key: str(value) for key, value in (place | node).items()}
            environment |= {"MASTER_ADDR": "127.0.0.1", "ROLE_NAME": "dlrover-trainer"}
            workers.append(self._start(name, environment, subprocess.DEVNULL))
        end = time.monotonic() + ATTEMPT
        # A worker that fails leaves the others in a collective.
        while any(worker.poll() is None for worker in workers) and time.monotonic() < end:
            if any(worker.poll() for worker in workers):
                break
            time.sleep(0.05)
        codes = [worker.poll() for worker in workers]
        if any(code != 0 for code in codes):
            raise SystemExit(f"DLRover's workers ended with {codes} in phase {name} (None: still running)")
        return [json.loads((self._folder / f"{name}-{rank}.json").read_text()) for rank in range(len(workers))]

    def _start(self, phase: str, environment: dict[str, str], stdin: int) -> subprocess.Popen[bytes]:
        options = {"bytes": self._options.bytes, "saves": self._options.saves, "folder": self._folder, "phase": phase}
        arguments = [text for key, value in options.items() for text in (f"--{key}", str(value))]
        standing = {
            "TORCHELASTIC_RUN_ID": self._name,
            "OMP_NUM_THREADS": THREADS,
            "CUDA_VISIBLE_DEVICES": "",
            "DS_ACCELERATOR": "cpu",
            "PYTHONWARNINGS": "ignore::FutureWarning",  # torch about pynvml
        }
        process = subprocess.Popen(
            [sys.executable, "-P", __file__, *arguments],
            env=os.environ | standing | environment,
            stdin=stdin,
            start_new_session=True,
        )
        self._processes.append(process)
        return process


def summary(saved: list[dict[str, Any]], restored: list[dict[str, Any]]) -> dict[str, Any]:
    """Training waits for its slowest worker: each figure is of the slowest at each save. Seconds."""
    stalls = [max(each) for each in zip(*(worker["stalls"] for worker in saved), strict=True)]
    copies = [max(each) for each in zip(*(worker["copies"] for worker in saved), strict=True)]
    later = stalls[1:] or stalls
    return {
        "bytesPerWorker": saved[0]["bytes"],
        "memcpyMedian": statistics.median(copies),
        "firstSave": stalls[0],
        "saveMedian": statistics.median(later),
        "saveP99": sorted(later)[max(0, -(-len(later) * 99 // 100) - 1)],
        "saveOverMemcpy": statistics.median(later) / statistics.median(copies),
        "restoreView": max(worker["view"] for worker in restored),
        "restore": max(worker["restore"] for worker in restored),
        "restoredRight": all(worker["right"] for worker in restored),
        "skipped": max(worker["skipped"] for worker in saved),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=512 * 2**20, help="state of each worker")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--saves", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("/dev/stdout"))
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--phase", choices=("keep", "save", "restore"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.phase == "keep":
        keep()
    if options.phase:
        work(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    with tempfile.TemporaryDirectory() as name, Run(options, Path(name)) as run:
        saved, restored = run.phase("save"), run.phase("restore")
    told = {"summary": summary(saved, restored), "workers": saved, "restores": restored}
    options.out.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
