"""The memory that real workers take at their peak is what the estimate says, within a tenth.

Two models of each kind train on the CPU; what differs between them is compared, so that libraries, buffers of sockets
and whatever else a process has in any case cancel out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmtrain_operator.api import JobSpec
from llmtrain_operator.estimate.layout import Layout, Wanted, layout
from llmtrain_operator.estimate.memory import memory
from llmtrain_operator.estimate.shape import shape_of
from llmtrain_operator.estimate.stores import moments

pytestmark = pytest.mark.timeout(1600)  # on a busy machine the imports alone take minutes
ROOT = Path(__file__).parents[2]
WIDE = {"hiddenSize": 384, "layers": 3, "heads": 6, "intermediateSize": 1024}
NARROW = {"hiddenSize": 128, "layers": 4, "heads": 4, "intermediateSize": 352}
CASES = {
    "ZeRO 0": ({"deepspeed": {"stage": 0}}, 1, "layers", 9),
    "ZeRO 2": ({"deepspeed": {"stage": 2}}, 1, "layers", 9),
    "ZeRO 2, bf16": ({"deepspeed": {"stage": 2}, "training": {"precision": "bf16"}}, 1, "layers", 9),
    "ZeRO 2, two workers": ({"deepspeed": {"stage": 2}}, 2, "layers", 9),
    "ZeRO 3, two workers": ({"deepspeed": {"stage": 3}}, 2, "layers", 9),
    "activations": ({"deepspeed": {"stage": 0}}, 1, "length", 256),
    "recomputation": ({"deepspeed": {"stage": 0}, "training": {"activationCheckpointing": True}}, 1, "length", 256),
}
"""What is in the spec, workers, and what is larger in the second model."""


def spec(source, name, *, large):
    """The job of a case, with its smaller or its larger model."""
    extra, world, grows, size = CASES[name]
    length = grows == "length"
    shape = NARROW if length else WIDE | ({"layers": size} if large else {})
    batch = 8 if length else world
    return {
        "nodes": {"min": world},
        "model": {"architecture": shape},
        "data": {
            "source": str(source),
            "sequenceLength": (size if large else 64) if length else 2,
            "validationFraction": 0,
        },
        "training": {"maxSteps": 2, "globalBatchSize": batch, "precision": "fp32"} | extra.get("training", {}),
        "deepspeed": extra["deepspeed"],
        "checkpoint": {"flash": {"enabled": False}},
    }


def estimated(job):
    """Bytes at the peak."""
    parsed = JobSpec.model_validate(job)
    shape = shape_of(parsed)
    plan = layout(parsed, shape, Wanted(), moments(parsed))
    assert isinstance(plan, Layout)
    return memory(shape, plan, on_host=True).peak


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Bytes that the hungriest worker's memory grew by, by case and size."""
    directory = tmp_path_factory.mktemp("footprints")
    source = directory / "corpus.txt"
    source.write_text(Path(argparse.__file__).read_text()[:60_000])
    scenarios = [
        {
            "kind": "footprint",
            "name": f"{name}/{large}",
            "world": CASES[name][1],
            "spec": spec(source, name, large=large),
        }
        for name in CASES
        for large in (False, True)
    ]
    (directory / "scenarios.json").write_text(json.dumps(scenarios))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("operator", "trainer_image", ".")),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "LLMTRAIN_DATA_CACHE": str(directory / "cache"),
        # What is freed goes back to the kernel at once, as far as whole tensors go, so that it is not counted twice.
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "MALLOC_ARENA_MAX": "1",
    }
    fleet = Path(__file__).with_name("trainer_fleet.py")
    command = [sys.executable, str(fleet), str(directory / "scenarios.json"), str(directory / "results.json")]
    subprocess.run(command, env=environment, check=True, timeout=1500)
    results = json.loads((directory / "results.json").read_text())
    found = {}
    for scenario in scenarios:
        workers = [results[scenario["name"]][f"result-{rank}"] for rank in range(scenario["world"])]
        found[scenario["name"]] = max(worker["training"] for worker in workers)
    return source, found


@pytest.mark.parametrize("name", CASES)
def test_what_a_larger_model_takes_more(measured, name):
    """Weights, gradients and moments by ZeRO's stages; activations with and without recomputation."""
    source, found = measured
    grown = found[f"{name}/True"] - found[f"{name}/False"]
    expected = estimated(spec(source, name, large=True)) - estimated(spec(source, name, large=False))
    print(f"{name}: {grown / 2**20:.1f} MiB more measured, {expected / 2**20:.1f} estimated")
    assert expected == pytest.approx(grown, rel=0.1)
