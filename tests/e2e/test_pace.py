"""A worker's own time in a step, as measured in real DeepSpeed workers, is what tells who holds the others up."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmtrain_operator.contract import codec, wire

ROOT = Path(__file__).parents[2]
STAGES = (0, 1, 2, 3)
STEPS = 24
MICRO_STEPS = 2
SLOW, LATE = 0.15, 0.1
"""Seconds that the last rank takes longer for a forward pass, and waits for a batch."""


@pytest.fixture(scope="module")
def paces(tmp_path_factory):
    """What each of three workers says of its pace after the last step, by ZeRO stage."""
    directory = tmp_path_factory.mktemp("paces")
    source = directory / "corpus.txt"
    source.write_text(Path(argparse.__file__).read_text()[:40_000])
    spec = {
        "model": {"architecture": {"hiddenSize": 32, "layers": 2, "heads": 4, "intermediateSize": 64}},
        "data": {"source": str(source), "sequenceLength": 32},
        "training": {"globalBatchSize": 6, "microBatchSize": 1, "maxSteps": STEPS, "precision": "fp32"},
    }
    both = {"kind": "hampered", "world": 3, "slow": SLOW, "late": LATE}
    scenarios = [both | {"name": str(stage), "spec": spec | {"deepspeed": {"stage": stage}}} for stage in STAGES]
    (directory / "scenarios.json").write_text(json.dumps(scenarios))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("operator", "trainer_image", ".")),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "LLMTRAIN_DATA_CACHE": str(directory / "cache"),
    }
    fleet = Path(__file__).with_name("trainer_fleet.py")
    command = [sys.executable, str(fleet), str(directory / "scenarios.json"), str(directory / "results.json")]
    subprocess.run(command, env=environment, check=True, timeout=300)
    results = json.loads((directory / "results.json").read_text())
    return {stage: [_last_pace(results[str(stage)][f"result-{rank}"]) for rank in range(3)] for stage in STAGES}


def _last_pace(result):
    assert result["steps"][0]["pace"] is None, "one step is not enough to tell"
    return codec.from_dict(wire.Pace, result["steps"][-1]["pace"])


@pytest.mark.parametrize("stage", STAGES)
def test_the_slow_one_is_told_from_those_who_wait_for_it(paces, stage):
    """Its own time has what it computes longer, but not its waiting for data; its peers' has nothing of either."""
    slow = paces[stage][2]
    print(f"stage {stage}:", *paces[stage])
    assert MICRO_STEPS * SLOW <= slow.own <= slow.step - LATE
    assert all(pace.step > slow.own for pace in paces[stage]), "all steps are as long as the slowest one's"
    # On a busy machine ranks differ by themselves too, by less than that.
    assert all(pace.own < slow.own - MICRO_STEPS * SLOW / 2 for pace in paces[stage][:2])
