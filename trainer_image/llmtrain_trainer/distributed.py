"""Joining the other workers: device, process group, and what DeepSpeed needs to be told before that.

The environment is torchrun's (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), whether torchrun or our agent
started the process. Limit: the environment variables that DeepSpeed reads are set for the whole process.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed

from llmtrain_operator.contract import names
from llmtrain_trainer.errors import TrainerError

T = TypeVar("T")

# Longer than a first tokenisation that the others wait for; a lost member is the operator's business, not a timeout's.
_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class Worker:
    """This process among all workers."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this worker speaks and writes for all."""
        return self.rank == 0

    def sums(self, *values: float | torch.Tensor) -> list[float]:
        """Each value summed over all workers. Collective."""
        total = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=self.device) for value in values])
        torch.distributed.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def from_first(self, value: T) -> T:
        """Rank 0's value, on all workers. Collective."""
        box: list[Any] = [value]
        torch.distributed.broadcast_object_list(box, src=0, device=self.device)
        return cast("T", box[0])

    def gather(self, value: T) -> list[T]:
        """Every worker's value, in the order of ranks. Collective."""
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def check_same(self, data_digest: str) -> None:
        """Make sure that all workers see the same data. Collective; raises `DataCorrupt` on all of them."""
        digests = self.gather(data_digest)
        others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        if others:
            raise TrainerError(
                names.REASON_DATA_CORRUPT,
                f"spec.data.source: ranks {', '.join(map(str, others))} see other text than rank 0; give all members "
                "the same files, for instance on a volume that they share (ReadOnlyMany or ReadWriteMany)",
            )


def join() -> Worker:
    """Join the process group. Collective; returns when all workers are there."""
    on_accelerator = torch.accelerator.is_available()
    if not on_accelerator:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is first imported
    import deepspeed
    import deepspeed.ops

    # An empty table says that no operator may be compiled here. Otherwise DeepSpeed probes for compilers and builds
    # its shared-memory communication at start: 30 s, and a lock that hangs the next worker if this one is killed.
    deepspeed.ops.__compatible_ops__ = {}
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    device = torch.device("cpu")
    if on_accelerator:
        torch.accelerator.set_device_index(local_rank)
        device = torch.device(str(torch.accelerator.current_accelerator()), local_rank)
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False, timeout=_TIMEOUT)
    return Worker(rank, int(os.environ["WORLD_SIZE"]), device)
