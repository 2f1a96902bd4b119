"""Two workers that step together; in round 1 the last one stops doing so at step 20, as its argument says."""

import os
import sys
import threading
import time

import torch
import torch.distributed as dist

from llmtrain_trainer import stacks
from llmtrain_trainer.progress import Reporter

STEPS = 60


def wait_for_ever() -> None:
    """A lock that nobody gives back."""
    threading.Event().wait()


def compute_for_ever() -> None:
    """Slow, but going on."""
    began = time.monotonic()
    while time.monotonic() - began < 6:
        sum(range(10_000))


def skip_a_collective() -> None:
    """The others are in one that this rank does not take part in; it is in the next."""
    dist.barrier(group)


stacks.offer()
dist.init_process_group("gloo")
group = dist.new_group()
rank, last = dist.get_rank(), dist.get_world_size() - 1
reporter = Reporter(rank, STEPS)
total = torch.zeros(1)
for step in range(1, STEPS + 1):
    began = time.perf_counter()
    time.sleep(0.05)
    if step == 20 and rank == last and os.environ["LLMTRAIN_ROUND"] == "1":
        {"lock": wait_for_ever, "slow": compute_for_ever, "mismatch": skip_a_collective}[sys.argv[1]]()
    dist.all_reduce(total)
    reporter.update(phase="training", step=step, step_seconds=time.perf_counter() - began)
dist.destroy_process_group()
