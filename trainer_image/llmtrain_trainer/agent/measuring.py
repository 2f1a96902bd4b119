"""How fast this node is: `python -m llmtrain_trainer.agent.measuring SECONDS DIRECTORY PARENT`. A process of its own.

What is found is printed line by line as JSON, so that whoever waits knows what took too long. Each figure is the best
of all that fit into its `SECONDS`, because what else the node does at the moment is no fault of the node. Of several
accelerators, which all work at once, the slowest counts.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch

from llmtrain_trainer.orphans import die_with

CPU_SIZE: Final = 1024
CPU_BYTES: Final = 64 * 2**20
"""Of each of two buffers: beyond most caches, and little beside what training needs."""
CUDA_SIZE: Final = 8192
CUDA_BYTES: Final = 512 * 2**20
REPEATS: Final = 10
"""Operations on an accelerator between two looks at its clock."""
DISK_BYTES: Final = 4 * 2**20

Sample = Callable[[], Sequence[float]]
"""Does a piece of work; seconds that each device took for it."""


def main(argv: Sequence[str]) -> None:
    seconds, directory = float(argv[0]), Path(argv[1])
    die_with(int(argv[2]))
    devices = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    steps: dict[str, Callable[[], str | float]] = {
        "device": lambda: begin(devices),
        "matmul": lambda: matmul(devices, seconds),
        "memory": lambda: memory(devices, seconds),
        "disk": lambda: disk(directory, seconds),
    }
    for name, step in steps.items():
        try:
            found: dict[str, str | float] = {name: step()}
        except (OSError, RuntimeError, MemoryError) as error:  # torch's are RuntimeErrors
            found = {"error": f"{name}: {error or type(error).__name__}"}
        print(json.dumps(found), flush=True)
        if "error" in found:
            return


def begin(devices: Sequence[torch.device]) -> str:
    """What the devices are, once they can be used, which takes seconds and does not count."""
    for device in devices:
        torch.cuda.synchronize(device)
    return torch.cuda.get_device_name() if devices else "cpu"


def matmul(devices: Sequence[torch.device], seconds: float) -> float:
    """TFLOP/s of a square matrix product: fp32 on a CPU, with as many threads as a worker has; bf16 on accelerators."""
    size, dtype = (CUDA_SIZE, torch.bfloat16) if devices else (CPU_SIZE, torch.float32)
    pairs = [torch.ones(3, size, size, dtype=dtype, device=device) for device in devices or [torch.device("cpu")]]
    work = [lambda a=a, b=b, c=c: torch.mm(a, b, out=c) for a, b, c in pairs]
    return 2 * size**3 / _slowest(work, devices, seconds) / 1e12


def memory(devices: Sequence[torch.device], seconds: float) -> float:
    """GB/s, read and written, of a copy within the memory."""
    size = CUDA_BYTES if devices else CPU_BYTES
    pairs = [torch.ones(2, size, dtype=torch.uint8, device=device) for device in devices or [torch.device("cpu")]]
    work = [lambda a=a, b=b: b.copy_(a) for a, b in pairs]
    return 2 * size / _slowest(work, devices, seconds) / 1e9


def disk(directory: Path, seconds: float) -> float:
    """MB/s of writing a file until it is on the disk."""
    directory.mkdir(parents=True, exist_ok=True)
    data = os.urandom(DISK_BYTES)
    with tempfile.TemporaryFile(dir=directory) as file:

        def write() -> Sequence[float]:
            start = time.perf_counter()
            file.seek(0)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            return (time.perf_counter() - start,)

        return DISK_BYTES / _best(write, seconds)[0] / 1e6


def _slowest(work: Sequence[Callable[[], object]], devices: Sequence[torch.device], seconds: float) -> float:
    """Seconds for one piece of work, on the device that is the slowest at its best."""
    if devices:
        return max(_best(lambda: _on_accelerators(work, devices), seconds))

    def once() -> Sequence[float]:
        start = time.perf_counter()
        work[0]()
        return (time.perf_counter() - start,)

    return max(_best(once, seconds))


def _on_accelerators(work: Sequence[Callable[[], object]], devices: Sequence[torch.device]) -> Sequence[float]:
    """All at once, by their own clocks."""
    marks = []
    for one, device in zip(work, devices, strict=True):
        with torch.cuda.device(device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            for _ in range(REPEATS):
                one()
            end.record()
            marks.append((start, end))
    for _, end in marks:
        end.synchronize()
    return [start.elapsed_time(end) / 1000 / REPEATS for start, end in marks]


def _best(sample: Sample, seconds: float) -> Sequence[float]:
    """The least that each device needed, of as many samples as `seconds` allow and a first one that warms up."""
    end = time.monotonic() + seconds
    sample()
    best = sample()
    while time.monotonic() < end:
        best = [min(pair) for pair in zip(best, sample(), strict=True)]
    return best


if __name__ == "__main__":
    main(sys.argv[1:])
