"""A worker that says where it is and runs until SIGTERM; then it takes half a second and exits with argument 2 (0)."""

import os
import signal
import sys
import time
from pathlib import Path

folder = Path(sys.argv[1])
code = int(sys.argv[2]) if len(sys.argv) > 2 else 0


def save(_number, _frame):
    time.sleep(0.5)
    (folder / f"saved-{os.environ['RANK']}").write_text("saved")
    sys.exit(code)


signal.signal(signal.SIGTERM, save)
(folder / f"pid-{os.environ['RANK']}-round-{os.environ['LLMTRAIN_ROUND']}").write_text(str(os.getpid()))
while True:
    time.sleep(0.1)
