"""A torchrun script that knows nothing of llmtrain: STEPS all-reduces, PAUSE seconds apart."""

import os
import sys
import time

import torch
import torch.distributed as dist

steps, pause = int(sys.argv[1]), float(sys.argv[2])
dist.init_process_group("gloo")
for step in range(steps):
    value = torch.ones(1)
    dist.all_reduce(value)
    assert value.item() == dist.get_world_size()
    if step < 5:
        print(f"step {step} of attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}")
    time.sleep(pause)
dist.destroy_process_group()
