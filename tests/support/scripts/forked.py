"""What a worker forked from a zygote is like, as JSON; then what its first argument says."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

print(
    json.dumps(
        {
            "argv": sys.argv[1:],
            "name": __name__,
            "command": Path("/proc/self/cmdline").read_text().rstrip("\0").split("\0"),
            "rank": os.environ.get("RANK"),
            "agents": getattr(sys, "agents_own", None),
            "path": sys.path[0],
            "open": [str(each.resolve()) for each in Path("/proc/self/fd").iterdir() if int(each.name) > 2],
            "left": os.environ.get("ONLY_THE_ZYGOTES"),
            "group": os.getpgid(0) == os.getpid(),
            "random": random.random(),
            "modules": [name for name in ("deepspeed", "torch._dynamo") if name in sys.modules],
            "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
            "sum": float((torch.ones(300, 300) @ torch.ones(300, 300)).sum()),
            "threads": torch.get_num_threads(),
        }
    )
)
print("to stderr", file=sys.stderr)
match sys.argv[1:]:
    case ["exit", code]:
        sys.exit(int(code))
    case ["raise"]:
        raise ValueError("its own words")
    case ["sleep"]:
        print("asleep", flush=True)
        time.sleep(600)
