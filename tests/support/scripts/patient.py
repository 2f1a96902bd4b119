"""A worker that reports where it is, runs until SIGTERM, and then takes half a second to save."""

import os
import signal
import sys
import time
from pathlib import Path

folder = Path(sys.argv[1])


def save(_number, _frame):
    time.sleep(0.5)
    (folder / f"saved-{os.environ['RANK']}").write_text("saved")
    sys.exit(0)


signal.signal(signal.SIGTERM, save)
(folder / f"pid-{os.environ['RANK']}-round-{os.environ['LLMTRAIN_ROUND']}").write_text(str(os.getpid()))
while True:
    time.sleep(0.1)
