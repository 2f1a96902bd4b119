"""Training state saved at one world size and ZeRO stage, restored at others: bit for bit. Real workers, no cluster.

From files of plain bytes, or from snapshots in memory as the trainer takes them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORLDS, STAGES = (1, 2, 3), (0, 1, 2, 3)
SGD = {"optimizer": {"type": "SGD", "momentum": 0.9}}
SMALL_SUB_GROUPS = {"config": {"zero_optimization": {"sub_group_size": 40, "stage3_param_persistence_threshold": 10}}}
ROUND_ROBIN = {"config": {"zero_optimization": {"round_robin_gradients": True}}}
OFFLOADED = {"offload": "cpu"}
PARAMETERS_OFFLOADED = {"offload": "cpu", "config": {"zero_optimization": {"offload_param": {"device": "cpu"}}}}
FP32_ACCUMULATION = {"precision": "bf16", "config": {"data_types": {"grad_accum_dtype": "fp32"}}}
FP16 = {"precision": "fp16", "config": {"fp16": {"initial_scale_power": 16, "hysteresis": 1, "loss_scale_window": 2}}}
FP16_UNSCALED = {**FP16, "more": 0}  # at stage 0 DeepSpeed 0.19.8 scales no loss but divides by the scale: other steps


def source(stage, world):
    """The saving case of a stage and world size: each of the two precisions at every stage and every world size."""
    name = f"stage-{stage}-world-{world}"
    precision = "bf16" if (stage + world) % 2 else "fp32"
    return {"name": name, "world": world, "stage": stage, "precision": precision, "steps": 2, "dropout": 0.1}


MATRIX = [source(stage, world) for stage, world in product(STAGES, WORLDS)]
MATRIX_LOADS = [
    {**saved, "from": saved["name"], "stage": stage, "world": 1 + (saved["world"] + saved["stage"] + stage) % 3}
    for saved, stage in product(MATRIX, STAGES)
]
UNBROKEN = [{**source(stage, 2), "name": f"unbroken-{stage}", "more": 2} for stage in STAGES]
CONTINUED = [{**saved, "from": saved["name"]} for saved in UNBROKEN]


def special(name, saved, *loads):
    """A saving case without dropout, and loads of it, each (stage, world, changes)."""
    save = {"name": name, "steps": 2, "more": 2, **saved}
    common = {key: value for key, value in save.items() if key not in ("config", "offload")}
    return [save, *({**common, "from": name, "stage": s, "world": w, **changes} for s, w, changes in loads)]


SPECIAL = [
    *special("sgd", {"stage": 2, "world": 3, **SGD}, (0, 1, {}), (3, 2, {}), (1, 2, {}), (2, 2, ROUND_ROBIN)),
    *special("sgd-without-state", {"stage": 1, "world": 2, "optimizer": {"type": "SGD"}}, (3, 3, {}), (0, 1, {})),
    *special("round-robin", {"stage": 2, "world": 3, **ROUND_ROBIN}, (2, 2, ROUND_ROBIN), (2, 3, {}), (3, 2, {})),
    *special("sub-groups", {"stage": 3, "world": 2, **SMALL_SUB_GROUPS}, (3, 3, {}), (1, 3, {}), (3, 2, {})),
    *special("into-sub-groups", {"stage": 1, "world": 3}, (3, 2, SMALL_SUB_GROUPS)),
    *special("offloaded", {"stage": 2, "world": 2, **OFFLOADED}, (3, 3, OFFLOADED), (0, 1, {}), (2, 3, {})),
    *special("into-offloaded", {"stage": 3, "world": 3}, (1, 2, OFFLOADED), (3, 2, PARAMETERS_OFFLOADED)),
    *special("parameters-offloaded", {"stage": 3, "world": 2, **PARAMETERS_OFFLOADED}, (2, 3, {}), (3, 3, OFFLOADED)),
    *special("fp32-accumulation", {"stage": 1, "world": 2, **FP32_ACCUMULATION}, (2, 3, {}), (1, 3, FP32_ACCUMULATION)),
    *special("into-fp32-accumulation", {"stage": 3, "world": 3, "precision": "bf16"}, (1, 2, FP32_ACCUMULATION)),
    *special(
        "before-the-first-step", {"stage": 1, "world": 2, "steps": 0}, *((s, 3 - s % 2, {"warm": 2}) for s in STAGES)
    ),
    *special("bf16-before", {"stage": 0, "world": 2, "steps": 0, "precision": "bf16"}, (0, 1, {"warm": 2}), (3, 2, {})),
    *special("after-other-steps", {"stage": 2, "world": 2}, *((s, 1 + s % 3, {"warm": 1}) for s in STAGES)),
    *special("fp16", {"stage": 2, "world": 2, "steps": 8, **FP16}, (2, 2, FP16), (3, 3, FP16), (0, 1, FP16_UNSCALED)),
    *special("fp16-stage-0", {"stage": 0, "world": 2, "steps": 8, **FP16}, (1, 1, FP16_UNSCALED)),
]
REFUSED = {
    "precision": {"precision": "fp32"},
    "optimizer": {"optimizer": {"type": "SGD"}},
    "model": {"hidden": 8},
}
REFUSALS = [
    {**source(1, 2), "from": "stage-1-world-2", "name": f"refused-{name}", "stage": 2, **changes}
    for name, changes in REFUSED.items()
]


def named(loads):
    """Loads get the names of what they load and where to."""
    for number, case in enumerate(loads):
        if "from" in case and not case["name"].startswith("refused"):
            case["memory"] = number % 2 == 1  # every other one from snapshots in memory, as they are taken
            case["name"] = f"{case['from']}-to-stage-{case['stage']}-world-{case['world']}-{number}"
    return loads


CASES = named([*MATRIX, *MATRIX_LOADS, *UNBROKEN, *CONTINUED, *SPECIAL, *REFUSALS])
MOVED = [case["name"] for case in CASES if "from" in case and case.get("more") and "dropout" not in case]
LOADS = {case["name"]: case for case in CASES if "from" in case and case not in REFUSALS}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Results of all cases by name, one for each rank."""
    directory = tmp_path_factory.mktemp("states")
    (directory / "cases").write_text(json.dumps(CASES))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "operator"), str(ROOT / "trainer_image")]),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }
    script = Path(__file__).with_name("checkpoint_fleet.py")
    command = [sys.executable, str(script), str(directory / "cases"), str(directory / "results"), str(directory)]
    subprocess.run(command, env=environment, check=True, timeout=300)
    return json.loads((directory / "results").read_text())


def without_evaluation(digests):
    """Stage 3 computes with functions of its own, whose last bit may differ."""
    return {key: value for key, value in digests.items() if key != "evaluation"}


@pytest.mark.parametrize("name", LOADS)
def test_every_weight_and_moment_comes_back_bit_for_bit(fleet, name):
    """Masters, optimizer state, model weights, frozen ones, buffers and counters are those saved, on every rank."""
    saved = fleet[LOADS[name]["from"]][0]["saved"]
    assert any(key.endswith(("exp_avg_sq", "momentum_buffer")) for key in saved) == (
        "before" not in name and "without-state" not in name
    )
    for rank in fleet[name]:
        assert without_evaluation(rank["loaded"]) == without_evaluation(saved)
        assert rank["loaded"]["evaluation"] == pytest.approx(saved["evaluation"], rel=2e-2)


def test_the_matrix_goes_from_every_stage_and_size_to_every_other():
    """All pairs of stages and all pairs of world sizes are among the cases."""
    sources = {case["name"]: case for case in MATRIX}
    pairs = [(sources[case["from"]], case) for case in MATRIX_LOADS]
    for key, values in (("stage", STAGES), ("world", WORLDS)):
        assert {(saved[key], loaded[key]) for saved, loaded in pairs} == set(product(values, values))


@pytest.mark.parametrize("case", CONTINUED, ids=lambda case: case["from"])
def test_at_the_same_size_training_goes_on_as_if_unbroken(fleet, case):
    """Losses with dropout and the state after more steps are bit-identical on every rank."""
    for unbroken, continued in zip(fleet[case["from"]], fleet[case["name"]], strict=True):
        assert continued["losses"] == unbroken["losses"][-2:]
        assert continued["end"] == unbroken["end"]


@pytest.mark.parametrize("name", MOVED)
def test_at_another_size_the_next_steps_are_the_same_to_rounding(fleet, name):
    """Losses of the next steps follow the run that was not moved, and so do the counters."""
    unmoved, moved = fleet[LOADS[name]["from"]][0], fleet[name][0]
    precision = LOADS[name].get("precision", "fp32")
    assert moved["losses"] == pytest.approx(unmoved["losses"][-2:], rel=1e-5 if precision == "fp32" else 2e-2)
    assert moved["end"]["counters"] == unmoved["end"]["counters"]


def test_the_loss_scale_that_is_kept_was_searched_for(fleet):
    """The fp16 case overflowed and lowered its scale, so that going on with it is not starting again."""
    counters = fleet["fp16"][0]["saved"]["counters"]
    assert 0 < counters["skipped"] < counters["steps"]
    assert counters["scale"] < 2**16


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("precision", "frozen.bias is {'shape': [5], 'dtype': 'bfloat16'} there and"),
        ("optimizer", "spec.training.optimizer.type: the checkpoint has the state of AdamW, which SGD cannot use"),
        ("model", "body.weight is [7, 5] there and [8, 5] here"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused_by_name(fleet, name, words):
    """Every rank refuses alike, and says what differs and what to do."""
    for rank in fleet[f"refused-{name}"]:
        reason, message = rank["error"]
        assert reason == "CheckpointMismatch"
        assert words in message
