"""The reference trainer as a worker of dlrover-run, whose environment has torch and DeepSpeed; the rest is ours."""

import os
import runpy
import sys

sys.path += os.environ["LLMTRAIN_BENCH_PATHS"].split(os.pathsep)  # last: torch and what goes with it is DLRover's own
runpy.run_module("llmtrain_trainer.train", run_name="__main__", alter_sys=True)
