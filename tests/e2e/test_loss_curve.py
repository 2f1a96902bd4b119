"""The trainer's numbers, the same at any world size and ZeRO stage as in one plain DeepSpeed process. No cluster."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BATCH = 10  # shares of 4, 3, 3 over three workers: uneven on purpose
STEPS = 50


def merged(base, changes):
    """`base` with the nested `changes` laid over it."""
    both = dict(base)
    for key, value in changes.items():
        both[key] = merged(base.get(key, {}), value) if isinstance(value, dict) and key != "model" else value
    return both


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Results of all scenarios by name, played in one preloaded process."""
    directory = tmp_path_factory.mktemp("fleet")
    source = directory / "corpus.txt"
    source.write_text(Path(argparse.__file__).read_text()[:40_000])
    for rank in range(2):
        (directory / f"corpus-{rank}.txt").write_text(f"Rank {rank} has a text of its own.\n" * 20)
    base = {
        "model": {
            "architecture": {"hiddenSize": 32, "layers": 2, "heads": 4, "kvHeads": 2, "intermediateSize": 64},
        },
        "data": {"source": str(source), "sequenceLength": 32, "shuffle": False, "validationFraction": 0.02},
        "training": {
            "globalBatchSize": BATCH,
            "microBatchSize": 2,
            "maxSteps": STEPS,
            "precision": "fp32",
            "seed": 7,
            "optimizer": {"lr": 3e-3},
            "schedule": {"type": "constant", "warmupSteps": 5},
        },
        "deepspeed": {"stage": 2},
    }

    def scenario(name, kind="record", world=2, **changes):
        return {"name": name, "kind": kind, "world": world, "spec": merged(base, changes)}

    def interrupted(name, number):
        endless = scenario(name, kind="main", training={"maxSteps": 1_000_000})
        return endless | {"events": [{"step": 3, "signal": number}]}

    chance = random.Random(seed := int(time.time()))
    print(f"killed at random steps of seed {seed}")

    def durable(name, storage, world, *, killed=False, **changes):
        """A leg of a run with a checkpoint after every step, perhaps ended by the death of its last rank."""
        where = {"checkpoint": {"durable": {"storage": f"file://{directory}/{storage}", "everySteps": 1}}}
        leg = scenario(name, kind="main" if killed else "record", world=world, **merged(where, changes))
        return leg | ({"events": [{"step": chance.randint(*killed), "signal": signal.SIGKILL}]} if killed else {})

    def stage(number, steps=STEPS):
        return {"deepspeed": {"stage": number}, "training": {"maxSteps": steps}}

    gpt2 = {"config": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}}
    sgd = {"maxSteps": 8, "optimizer": {"type": "SGD", "lr": 0.5, "momentum": 0.9}}
    half = {"training": {"maxSteps": 8, "precision": "bf16", "activationCheckpointing": True}}
    wild = {"optimizer": {"lr": 1e30}, "schedule": {"warmupSteps": 0}}
    dropout = {"deepspeed": {"stage": 3}, "model": gpt2, "training": {"maxSteps": 20}}
    frozen = {"training": {"maxSteps": 1, "optimizer": {"lr": 0.0}}}
    output = str(directory / "model")
    scenarios = [
        scenario("plain", kind="plain", world=1),
        scenario("three", world=3),
        scenario("one", world=1, **stage(0, steps=15)),
        scenario("two", world=2, **stage(1, steps=15)),
        scenario("four", world=4, **stage(3, steps=10)),
        scenario("five", world=5, **stage(2, steps=10)),
        scenario(
            "exported", **merged(stage(3, steps=12), {"training": {"evaluation": {"everySteps": 5}}}), output=output
        ),
        scenario("reloaded", kind="reload", world=1, output=output),
        scenario("pretrained", **frozen, model={"pretrained": output}),
        scenario("offload", **merged(stage(2, steps=8), {"deepspeed": {"offloadOptimizer": "cpu"}})),
        scenario("spare-worker", world=3, training={"globalBatchSize": 2, "maxSteps": 6}),
        scenario("no-spare-worker", world=1, training={"globalBatchSize": 2, "maxSteps": 6}),
        scenario("bf16", **half),
        scenario("bf16-stage-0", **merged(stage(0), half)),
        scenario("bf16-stage-3", **merged(stage(3), half)),
        scenario("gpt2-sgd", deepspeed={"stage": 1}, model=gpt2, training=sgd),
        scenario("nan-loss", kind="main", deepspeed={"stage": 0}, training=wild),
        scenario("nan-gradients", kind="main", training=wild),
        interrupted("terminated", signal.SIGTERM),
        interrupted("peer-killed", signal.SIGKILL),
        scenario("dropout", **dropout),
        durable("dropout-killed", "a", 2, killed=(3, 17), **dropout),
        durable("dropout-restarted", "a", 2, **dropout),
        durable("three-killed", "b", 3, killed=(3, 20)),
        durable("two-killed", "b", 2, killed=(23, 40)),
        durable("three-again", "b", 3),
        durable("done-already", "b", 2),
        scenario("different-data", kind="main", data={"source": str(directory / "corpus-{rank}.txt")}),
        scenario("no-data", kind="main", world=1, data={"source": str(directory / "absent")}),
    ]
    (directory / "scenarios.json").write_text(json.dumps(scenarios))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("operator", "trainer_image", ".")),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "LLMTRAIN_DATA_CACHE": str(directory / "cache"),
    }
    command = [
        sys.executable,
        str(Path(__file__).with_name("trainer_fleet.py")),
        str(directory / "scenarios.json"),
        str(directory / "results.json"),
    ]
    subprocess.run(command, env=environment, check=True, timeout=400)
    return json.loads((directory / "results.json").read_text()) | {"directory": str(directory)}


def resumed(result, curve):
    """(step, loss, the undisturbed `curve`'s loss) after each step of a leg that went on from a checkpoint."""
    first, *steps = result["result-0"]["steps"]
    assert set(result["codes"]) == {0}
    assert first["step"] == first["checkpoints"]["restored_step"] > 0
    assert [progress["step"] for progress in steps] == list(range(first["step"] + 1, len(curve) + 1))
    return [(progress["step"], progress["loss"], curve[progress["step"] - 1]) for progress in steps]


def losses(result):
    """Every step's training loss."""
    assert set(result["codes"]) == {0}
    return [progress["loss"] for progress in result["result-0"]["steps"]]


def test_three_workers_follow_one_plain_deepspeed_process(fleet):
    """Uneven shares on three workers give the loss curve of a plain single-process run over 50 steps, to 1e-5."""
    expected = fleet["plain"]["result-0"]["losses"]
    assert expected[-1] < 0.75 * expected[0]
    assert losses(fleet["three"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["one", "two", "four", "five", "offload"])
def test_any_world_size_and_stage_gives_the_same_curve(fleet, name):
    """World sizes 1, 2, 4 and 5, at ZeRO 0, 1, 3 and 2, and with the optimizer offloaded, train the same model."""
    curve = losses(fleet[name])
    assert curve == pytest.approx(fleet["plain"]["result-0"]["losses"][: len(curve)], rel=1e-5)


def test_exported_model_has_the_validation_loss_that_was_reported(fleet):
    """A model gathered from ZeRO-3 shards and loaded with transformers alone is the one that was trained."""
    last = fleet["exported"]["result-0"]["steps"][-1]
    assert fleet["reloaded"]["result-0"]["loss"] == pytest.approx(last["validation_loss"], rel=1e-5)
    manifest = json.loads((Path(fleet["directory"]) / "model" / "llmtrain.json").read_text())
    assert manifest["steps"] == last["step"] == 12
    assert manifest["validationLoss"] == last["validation_loss"]
    assert sorted([*manifest["files"], "llmtrain.json"]) == sorted(
        path.name for path in (Path(fleet["directory"]) / "model").iterdir()
    )


def test_a_pretrained_directory_is_where_training_goes_on(fleet):
    """A step at rate 0 from an exported model leaves its validation loss as it was."""
    before = fleet["exported"]["result-0"]["steps"][-1]["validation_loss"]
    assert fleet["pretrained"]["result-0"]["steps"][-1]["validation_loss"] == pytest.approx(before, rel=1e-5)


def test_an_exported_model_generates_text(fleet):
    """`llmtrain_trainer.sample` goes on from the prompt."""
    text = fleet["reloaded"]["result-0"]["text"]
    assert text.startswith("def ")
    assert len(text) > len("def ")


def test_more_workers_than_sequences_change_nothing(fleet):
    """A worker with nothing but padding takes part without a say."""
    assert losses(fleet["spare-worker"]) == pytest.approx(losses(fleet["no-spare-worker"]), rel=1e-5)


@pytest.mark.parametrize("name", ["bf16", "bf16-stage-0", "bf16-stage-3"])
def test_bf16_with_activation_checkpointing_stays_close_to_fp32(fleet, name):
    """bf16 differs by its rounding only."""
    assert losses(fleet[name]) == pytest.approx(fleet["plain"]["result-0"]["losses"][:8], rel=1e-3)


def test_a_hugging_face_config_trains_with_sgd(fleet):
    """An inline config of another architecture and another optimizer learn."""
    curve = losses(fleet["gpt2-sgd"])
    assert curve[-1] < 0.9 * curve[0]


@pytest.mark.parametrize(("name", "words"), [("nan-loss", "the loss is nan"), ("nan-gradients", "25 steps in a row")])
def test_a_diverged_run_ends_with_its_name_and_step(fleet, name, words):
    """A loss that is no number, and steps that DeepSpeed keeps skipping, are errors of that name on every rank."""
    assert fleet[name]["codes"] == [1, 1]
    error = fleet[name]["error-0"]["message"]
    assert error["extraInfo"]["reason"] == "NonFiniteLoss"
    assert words in error["message"]
    assert f"step {error['extraInfo']['step'] + 1}" in error["message"]
    assert "training.optimizer.lr" in error["message"]
    assert "divergence.py" in error["extraInfo"]["py_callstack"]


def test_sigterm_to_one_worker_ends_all_at_the_same_step_boundary(fleet):
    """The exit status says that the end was asked for."""
    assert fleet["terminated"]["codes"] == [143, 143]


def test_a_worker_that_outlives_another_says_that_the_cause_is_elsewhere(fleet):
    """The broken collective of a survivor is not taken for an error of its own."""
    assert fleet["peer-killed"]["codes"] == [1, -signal.SIGKILL]
    assert fleet["peer-killed"]["error-0"]["message"]["extraInfo"]["reason"] == "PeerLost"


def test_killed_and_restarted_at_the_same_size_the_curve_is_the_same_bit_for_bit(fleet):
    """From a random step on, with dropout: masters, moments, generators and data position are all back."""
    assert fleet["dropout-killed"]["codes"][-1] == -signal.SIGKILL
    steps = resumed(fleet["dropout-restarted"], losses(fleet["dropout"]))
    assert [loss for _, loss, _ in steps] == [loss for _, _, loss in steps]


def test_killed_twice_and_restarted_with_two_and_three_workers_the_curve_is_the_same(fleet):
    """3 -> 2 -> 3 workers, each time dead at a random step: equal to the undisturbed run over all 50 steps."""
    curve = losses(fleet["three"])
    for name in ("three-killed", "two-killed"):
        heard = fleet[name]["losses"]
        assert len(heard) > 1
        assert list(heard.values()) == pytest.approx([curve[int(step) - 1] for step in heard], rel=1e-5)
    steps = resumed(fleet["three-again"], curve)
    assert [loss for _, loss, _ in steps] == pytest.approx([loss for _, _, loss in steps], rel=1e-5)
    assert steps[0][0] > 20


def test_a_job_applied_again_after_its_end_is_done_at_once(fleet):
    """It evaluates what it finds, takes no step, and writes no checkpoint."""
    (only,) = fleet["done-already"]["result-0"]["steps"]
    before = fleet["three-again"]["result-0"]["steps"][-1]
    assert (only["phase"], only["step"], only["loss"]) == ("done", STEPS, before["loss"])
    assert only["validation_loss"] == pytest.approx(before["validation_loss"], rel=1e-5)
    assert only["checkpoints"]["save_seconds"] is None


def test_missing_data_is_named(fleet):
    """The error file carries the trainer's own words."""
    error = fleet["no-data"]["error-0"]["message"]
    assert error["extraInfo"]["reason"] == "DataMissing"
    assert "absent" in error["message"]


def test_members_with_different_data_do_not_train(fleet):
    """Every worker refuses, before the first step, and names the ranks."""
    assert fleet["different-data"]["codes"] == [1, 1]
    error = fleet["different-data"]["error-0"]["message"]
    assert error["extraInfo"]["reason"] == "DataCorrupt"
    assert "ranks 1 see other text" in error["message"]
