"""Training while its checkpoint storage fails, and what it begins with: real mounts, a real S3 server. No cluster."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmtrain_trainer.checkpoint.catalog import Catalog
from llmtrain_trainer.checkpoint.storage import open_storage
from tests.e2e.test_loss_curve import ROOT, merged
from tests.support.director import free_port

KEYS = {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "test-access-key", "AWS_SECRET_ACCESS_KEY": "test-secret-key"}
DAMAGE = (
    "printf 'not what was written' | dd of=$(ls -d {}/step-*/shard-*-00001.bin | tail -1) bs=1 seek=99 conv=notrunc"
)
RUIN = "for f in {}/step-*/manifest.json; do echo ruined > $f; done"


def failing(reason, breaks, repairs, then=()):
    """Saves work, then fail for `reason` while training goes on, then work again; at last SIGTERM."""
    return [
        {"saved": True, **breaks},
        {"error": reason, "steps": 3, **repairs},
        *then,
        {"saved": True, "signal": signal.SIGTERM},
    ]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Results of all scenarios by name, played in one preloaded process."""
    directory = tmp_path_factory.mktemp("durable")
    (directory / "corpus.txt").write_text(Path(argparse.__file__).read_text()[:20_000])
    disk = directory / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=True)
    port = free_port()
    base = {
        "model": {"architecture": {"hiddenSize": 32, "layers": 2, "heads": 4, "kvHeads": 2, "intermediateSize": 64}},
        "data": {"source": str(directory / "corpus.txt"), "sequenceLength": 32, "validationFraction": 0.02},
        "training": {"globalBatchSize": 4, "maxSteps": 6, "precision": "fp32", "optimizer": {"lr": 3e-3}},
    }

    def scenario(name, storage="", *, events=(), env=None, before="true", kind="main", **changes):
        durable = {"checkpoint": {"durable": {"storage": storage, "everySteps": 2, "keep": 2}}} if storage else {}
        endless = {"training": {"maxSteps": 1_000_000}} if events else {}
        spec = merged(merged(merged(base, durable), endless), changes)
        environment = {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "LLMTRAIN_JOB_UID": "job-a"}
        return {
            "name": name,
            "kind": kind,
            "world": 2,
            "spec": spec,
            "events": list(events),
            "env": environment | (env or {}),
            "before": before,
            "pause": 0.5,
        }

    def own(name):
        return f"file://{directory}/{name}"

    room = f"head -c 3500k /dev/zero > {disk}/filler"
    left = {"all": True, "signal": signal.SIGUSR1}
    other = {"model": {"architecture": {"hiddenSize": 16, "layers": 2, "heads": 4, "kvHeads": 2}}}
    heads = {"model": {"architecture": base["model"]["architecture"] | {"heads": 2, "kvHeads": 1}}}
    frozen = {"training": {"maxSteps": 1, "optimizer": {"lr": 0.0}}}
    model = {"checkpoint": {"restoreFrom": own("model")}}
    scenarios = [
        scenario(
            "full disk",
            f"file://{disk}/full",
            events=failing("StorageFull", {"shell": room}, {"shell": f"rm {disk}/filler"}),
        ),
        scenario(
            "read-only disk",
            f"file://{disk}/read-only",
            events=[
                {"saved": True, "shell": f"mount -o remount,ro {disk}"},
                {"error": "StorageReadOnly", "steps": 3, **left},
                {"error": "StorageReadOnly", "steps": 3, "shell": f"mount -o remount,rw {disk}"},
            ],
        ),
        scenario(
            "server stopped",
            "s3://bucket/stopped",
            events=failing("StorageUnreachable", {"s3": "stop"}, {"s3": "start"}),
        ),
        scenario(
            "bucket gone",
            "s3://bucket/gone",
            events=failing("StorageMissing", {"s3": "lose_bucket"}, {"s3": "find_bucket"}),
        ),
        scenario(
            "keys changed",
            "s3://bucket/keys",
            events=failing("StorageDenied", {"s3": "change_keys"}, {"s3": "change_keys"}),
        ),
        scenario(
            "away at the start",
            "s3://bucket/stopped",
            before=f"mv {directory}/s3/bucket {directory}/lost-bucket",
            events=[
                {"error": "StorageMissing", "s3": "find_bucket"},
                {"saved": True, "signal": signal.SIGTERM},
            ],
        ),
        scenario("told to save", own("left"), events=[{"step": 3, **left}]),
        scenario("first", own("first"), kind="record", output=str(directory / "model")),
        scenario("newest damaged", own("first"), before=DAMAGE.format(directory / "first"), kind="record"),
        scenario("another model", own("first"), **other),
        scenario(
            "from another job",
            own("second"),
            kind="record",
            checkpoint={"restoreFrom": own("first")},
            training={"globalBatchSize": 6, "maxSteps": 8},
            output=str(directory / "second-model"),
        ),
        scenario("nothing left", own("sixth"), checkpoint={"restoreFrom": own("first")}),
        scenario("other heads", own("first"), **heads),
        scenario("from a model", own("third"), kind="record", **merged(model, frozen)),
        scenario("from another model", own("fourth"), **merged(model, other)),
        scenario("from nothing", own("fourth"), checkpoint={"restoreFrom": f"file://{directory}/s3"}),
        scenario("new round", own("fifth"), env={"LLMTRAIN_ROUND": "2"}),
        scenario("old round", own("fifth"), env={"LLMTRAIN_ROUND": "1"}),
        scenario("all damaged", own("fifth"), before=RUIN.format(directory / "fifth"), env={"LLMTRAIN_ROUND": "3"}),
    ]
    (directory / "scenarios.json").write_text(json.dumps(scenarios))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("operator", "trainer_image", ".")),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "LLMTRAIN_DATA_CACHE": str(directory / "cache"),
    }
    script, s3_root = Path(__file__).with_name("trainer_fleet.py"), directory / "s3"
    files = [str(directory / name) for name in ("scenarios.json", "results.json")]
    try:
        command = [sys.executable, str(script), *files, str(s3_root), str(port)]
        subprocess.run(command, env=environment, check=True, timeout=400)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    return json.loads((directory / "results.json").read_text()) | {"directory": str(directory)}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("full disk", "make room"),
        ("server stopped", "s3://bucket/stopped"),
        ("bucket gone", "bucket"),
        ("keys changed", "credentials"),
    ],
)
def test_training_goes_on_while_storage_fails_and_recovers_by_itself(fleet, name, words):
    """Steps are done meanwhile, the error is told in words, and the next good save takes it back."""
    before, during, after = (progress["checkpoints"] for progress in fleet[name]["seen"])
    steps = [progress["step"] for progress in fleet[name]["seen"]]
    assert fleet[name]["codes"] == [143, 143]
    assert before["error"] == after["error"] == after["error_reason"] == ""
    assert words in during["error"]
    assert during["failed_step"] > during["step"] >= before["step"]
    assert steps[1] >= steps[0] + 3
    assert after["step"] > steps[1]
    assert not set(KEYS.values()) & set(during["error"].split())


def test_workers_told_to_leave_go_on_training_until_their_state_is_saved(fleet):
    """A read-only disk keeps them in their round; once it can be written they leave with 143."""
    assert fleet["read-only disk"]["codes"] == [143, 143]
    steps = [progress["step"] for progress in fleet["read-only disk"]["seen"]]
    assert steps[2] >= steps[1] + 3


def test_workers_told_to_save_leave_at_the_next_boundary(fleet):
    """All at the same one, which is in storage: nothing is trained twice."""
    assert fleet["told to save"]["codes"] == [143, 143]
    newest, _ = Catalog(open_storage(f"file://{fleet['directory']}/left")).newest_valid()
    assert newest.step >= fleet["told to save"]["seen"][0]["step"] >= 3


def test_storage_that_is_away_at_the_start_is_waited_for(fleet):
    """Nobody starts at step 0, no worker fails; when it is back training goes on from its checkpoint."""
    waiting, saved = fleet["away at the start"]["seen"]
    assert (waiting["phase"], waiting["step"], waiting["loss"]) == ("restoring", 0, None)
    assert fleet["away at the start"]["codes"] == [143, 143]
    former = fleet["server stopped"]["seen"][-1]["checkpoints"]["step"]
    assert saved["checkpoints"]["restored_step"] >= former
    assert saved["checkpoints"]["restored_from"].startswith("s3://bucket/stopped/step-")


def test_a_damaged_shard_makes_all_ranks_take_the_next_older_checkpoint(fleet):
    """Only rank 1's shard is damaged; the checkpoint is passed over by name, and the run gives the same loss."""
    first, *steps = fleet["newest damaged"]["result-0"]["steps"]
    assert first["checkpoints"]["restored_step"] == 4
    (skipped,) = first["checkpoints"]["skipped"]
    assert skipped.startswith("step-000000000006/shard-00000001-00001.bin: ")
    assert steps[-1]["loss"] == fleet["first"]["result-0"]["steps"][-1]["loss"]


def test_a_checkpoint_of_another_model_is_refused_by_name(fleet):
    """The first parameters that differ, their shapes, and the remedy."""
    reason, message = error_of(fleet["another model"])
    assert reason == "CheckpointMismatch"
    assert "model.embed_tokens.weight is [257, 32] there and [257, 16] here" in message
    assert "another storage" in message


def test_a_job_can_start_from_another_jobs_checkpoint(fleet):
    """The whole state: step, weights and the place in the data, which a new batch size does not change."""
    first, *steps = fleet["from another job"]["result-0"]["steps"]
    assert (first["step"], [progress["step"] for progress in steps]) == (6, [7, 8])
    assert first["checkpoints"]["step"] is None
    assert steps[0]["epoch"] * 8 == pytest.approx(first["epoch"] * 6 / 24 * 30 * 8 / 6)
    assert steps[-1]["checkpoints"]["step"] == 8
    facts = json.loads((Path(fleet["directory"]) / "second-model" / "llmtrain.json").read_text())
    assert (facts["steps"], facts["tokens"]) == (8, (6 * 4 + 2 * 6) * 32)


def test_a_job_can_start_from_a_finished_model(fleet):
    """A step at rate 0 from its weights leaves its validation loss as it was."""
    before = fleet["first"]["result-0"]["steps"][-1]["validation_loss"]
    (only,) = fleet["from a model"]["result-0"]["steps"]
    assert only["validation_loss"] == pytest.approx(before, rel=1e-5)
    assert only["checkpoints"]["restored_step"] == 0
    assert only["checkpoints"]["restored_from"].endswith("/model")


@pytest.mark.parametrize(
    ("name", "reason", "words"),
    [
        (
            "from another model",
            "CheckpointMismatch",
            "lm_head.weight has the shape [257, 32], here it is [257, 16]",
        ),
        ("nothing left", "InvalidConfig", "spec.training.maxSteps: 6 is not more than the 6 steps"),
        ("other heads", "CheckpointMismatch", "num_attention_heads was 4, is 2"),
        ("from nothing", "InvalidConfig", "holds neither a checkpoint nor a Hugging Face model"),
        ("old round", "Fenced", "round 2 of this job has claimed it"),
        ("all damaged", "CheckpointLost", "step-000000000006/manifest.json: "),
    ],
)
def test_what_cannot_be_begun_with_ends_every_worker_by_name(fleet, name, reason, words):
    """Never step 0 by mistake, and never two rounds in one storage."""
    assert fleet[name]["codes"] == [1, 1]
    for rank in range(2):
        found, message = error_of(fleet[name], rank)
        assert found == reason
        assert words in message


def error_of(result, rank=0):
    """Reason and message of a rank's error file."""
    written = result[f"error-{rank}"]["message"]
    return written["extraInfo"]["reason"], written["message"]
