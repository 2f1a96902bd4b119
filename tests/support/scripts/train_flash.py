"""A user's torchrun script with snapshots: DDP, or FSDP2 with `--fsdp`; prints where it began and how it ended.

The last worker kills itself before step 8, once: the file `--marker` remembers it. The attempt that gets to the end
trains once more from the beginning, without snapshots, and prints what that ends with.
"""

import argparse
import hashlib
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from llmtrain_trainer.flash import Checkpointer

STEPS, KILLED_AT = 12, 8

parser = argparse.ArgumentParser()
parser.add_argument("--marker", type=Path, required=True)
parser.add_argument("--fsdp", action="store_true")
options = parser.parse_args()


def say(line: str) -> None:
    """In one write: two workers share the output."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()


def train() -> str:
    """The digest of all weights, whole."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 5), torch.nn.Dropout(0.1), torch.nn.Linear(5, 1), torch.nn.Linear(1, 1)
    )
    model[-1].requires_grad_(False)
    wrapped = fully_shard(model) if options.fsdp else DistributedDataParallel(model)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
    torch.manual_seed(100 + rank)  # dropout differs between ranks
    with Checkpointer(wrapped, optimizer, scheduler=scheduler, max_steps=STEPS) as checkpointer:
        began = checkpointer.restore()
        say(f"rank {rank} begins after step {began} with {checkpointer.position}")
        for step in range(began + 1, STEPS + 1):
            if step == KILLED_AT and rank == world_size - 1 and not options.marker.exists():
                options.marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(step * world_size + rank))
            loss = (wrapped(inputs) - inputs.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            checkpointer.step(step, loss, position={"samples": step * 16 * world_size})
    tensors = [weight.full_tensor() if isinstance(weight, DTensor) else weight for weight in model.parameters()]
    return hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()


say(f"rank {rank} ends with {train()}")
del os.environ["LLMTRAIN_FLASH"]
say(f"rank {rank} unbroken ends with {train()}")
dist.destroy_process_group()
