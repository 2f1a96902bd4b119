"""Leaves five dead grandchildren to PID 1, then exits with 40 plus the number of zombies that remain."""

import os
import sys
import time
from pathlib import Path

for _ in range(5):
    if os.fork() == 0:
        os.fork()
        os._exit(0)
    os.wait()


def zombies():
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat")]
    return sum(stat.rpartition(")")[2].split()[0] == "Z" for stat in stats)


deadline = time.monotonic() + 10
while zombies() and time.monotonic() < deadline:
    time.sleep(0.1)
sys.exit(40 + zombies())
