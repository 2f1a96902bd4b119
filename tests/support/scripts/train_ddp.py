"""A torchrun script as a user would bring it: plain PyTorch DDP, nothing of llmtrain in it."""

import argparse
import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=10)
steps = parser.parse_args().steps

dist.init_process_group("gloo")
rank = int(os.environ["RANK"])
print(f"world size {dist.get_world_size()}, attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}")
model = DistributedDataParallel(torch.nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(1, steps + 1):
    inputs = torch.randn(16, 8)
    loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step} loss {loss.item():.4f}")
dist.destroy_process_group()
