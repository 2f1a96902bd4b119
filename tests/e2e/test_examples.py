"""The examples, run: on real kubelets with what they need around them, or on this machine without a cluster."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster.cluster import Cluster
from devcluster.config import CONTROL_PLANE_IP
from tests.support.kube import Kubectl
from tests.support.local import CODE, PATIENCE, Local
from tests.support.s3 import ACCESS_KEY, SECRET_KEY, S3Server

ROOT = Path(__file__).parents[2]
HUB_PORT, S3_PORT = 7480, 7481
TINY = "HuggingFaceTB/SmolLM2-135M"


def example(name: str, **spec: Any) -> list[dict[str, Any]]:
    """The objects of an example; `spec` replaces fields of the job's."""
    objects = [each for each in yaml.safe_load_all((ROOT / f"examples/{name}.yaml").read_text()) if each]
    objects[-1]["spec"] |= spec
    return objects


def text_of(kubectl: Kubectl, job: str) -> str:
    """What the job's pods printed."""
    return kubectl("logs", "-l", f"llmtrain.io/job={job}", "--tail=-1")


def test_a_hugging_face_trainer_script_goes_on_after_a_loss(kubectl: Kubectl, installed: Cluster) -> None:
    """Unmodified, two members: one is deleted after the first checkpoint, and both go on from the newest."""
    kubectl.apply(*example("hf-trainer", nodes={"min": 2}))
    kubectl.wait("pvc/hf-trainer", "jsonpath={.status.phase}=Bound", 60)
    folder = installed.shared / kubectl.get("pvc", "hf-trainer")["spec"]["volumeName"]
    installed.wait(lambda: (folder / "checkpoint-20/trainer_state.json").exists(), 240, "a checkpoint of the script's")
    kubectl("delete", "pod", "hf-trainer-1-1", "--grace-period=1", "--wait=false")
    kubectl.wait("ltj/hf-trainer", "condition=Complete")
    assert (folder / "model/model.safetensors").exists()
    begins = [line for line in text_of(kubectl, "hf-trainer").splitlines() if "of 2 begins with" in line]
    assert any("begins with /checkpoints/checkpoint-" in line for line in begins), begins
    status = kubectl.job("hf-trainer")
    assert (status["restarts"], status["failuresCounted"], status["nodes"]) == (1, 0, "2/2")


@pytest.fixture
def bucket(installed: Cluster, tmp_path: Path) -> Iterator[S3Server]:
    """A real S3 server beside the control plane, where pods reach it, with the example's bucket."""
    server = S3Server(tmp_path / "s3", CONTROL_PLANE_IP, S3_PORT, installed.enter("cp"))
    server.bucket("training")
    server.start()
    yield server
    server.stop()


def test_checkpoints_go_to_s3_and_can_be_looked_at(kubectl: Kubectl, bucket: S3Server) -> None:
    """The members have the keys from the secret; `llmtrain checkpoints` reaches the bucket from where they do."""
    secret, job = example("s3")
    secret["stringData"] = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    job["spec"]["checkpoint"]["s3"]["endpoint"] = bucket.endpoint
    job["spec"] |= {"nodes": {"min": 2}, "training": {"maxSteps": 60, "globalBatchSize": 4}}
    kubectl.apply(secret, job)
    kubectl.wait("ltj/s3", "condition=Complete")
    assert kubectl.condition("s3", "Durable")["status"] == "True"
    code, listed = llmtrain(kubectl, "checkpoints", "ls", "s3")
    assert (code, [line.split()[0] for line in listed.splitlines()[1:]]) == (0, ["60", "50"]), listed
    [shard] = sorted((bucket.root / "training/gpt-tiny/step-000000000050").glob("shard-*-00001.bin"))
    shard.write_bytes(shard.read_bytes()[:-9])
    code, said = llmtrain(kubectl, "checkpoints", "verify", "s3")
    assert (code, "step 60: valid" in said, "step 50: damaged" in said, shard.name in said) == (1, True, True, True)
    left = [pod["metadata"] for pod in kubectl.items("pod") if "checkpoints" in pod["metadata"]["name"]]
    assert all("deletionTimestamp" in pod for pod in left), "the command deletes its pods, which takes a moment"


def llmtrain(kubectl: Kubectl, *words: str) -> tuple[int, str]:
    """The command in the test's namespace: exit code and output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator"), "KUBECONFIG": str(kubectl.kubeconfig)}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *words, "-n", kubectl.namespace],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.fixture
def hub(installed: Cluster, tmp_path: Path) -> Iterator[str]:
    """A hub where pods reach it, with a tiny model under the example's name."""
    make = (
        "import sys; from pathlib import Path; from transformers import LlamaConfig, LlamaForCausalLM; "
        "from llmtrain_trainer.data import ByteTokenizer; out = Path(sys.argv[1]); "
        "config = LlamaConfig(vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=1, "
        "num_attention_heads=2, max_position_embeddings=128); "
        "LlamaForCausalLM(config).save_pretrained(out); ByteTokenizer().save(out)"
    )
    paths = {**os.environ, "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'trainer_image'}:{ROOT}"}
    subprocess.run([sys.executable, "-c", make, str(tmp_path)], env=paths, check=True, capture_output=True)
    address = [CONTROL_PLANE_IP, str(HUB_PORT)]
    server = subprocess.Popen(
        [*installed.enter("cp"), sys.executable, "-m", "tests.support.hub", *address, f"{TINY}={tmp_path}"],
        env=paths,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout
    assert server.stdout.readline() == "serving\n"
    yield f"http://{CONTROL_PLANE_IP}:{HUB_PORT}"
    server.communicate("", timeout=20)


def test_a_model_of_a_hub_is_trained_further(kubectl: Kubectl, installed: Cluster, hub: str) -> None:
    """Model and tokenizer come by their hub id, over the network; the result is a model of its shape."""
    claim, job = example("finetune-hub", nodes={"min": 2})
    job["spec"]["training"] |= {"maxSteps": 10}
    job["spec"]["template"]["spec"]["containers"][0]["env"].append({"name": "HF_ENDPOINT", "value": hub})
    kubectl.apply(claim, job)
    kubectl.wait("ltj/finetune-hub", "condition=Complete")
    volume = kubectl.get("pvc", "finetune")["spec"]["volumeName"]
    model = json.loads((installed.shared / volume / "model/config.json").read_text())
    assert (model["hidden_size"], model["vocab_size"]) == (32, 257)


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Any]:
    """Runs an example's script on this machine; what is left of it goes at the end."""
    runs: list[Local] = []

    def start(name: str, folder: Path) -> Local:
        _, script, _ = example(name)
        (tmp_path / "train.py").write_text(script["data"]["train.py"])
        entrypoint = {"script": str(tmp_path / "train.py"), "args": [str(folder), "2000"]}
        runs.append(Local(tmp_path, {"nodes": {"min": 2}, "entrypoint": entrypoint}, 2))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()
        run.process.wait(PATIENCE)
        for pid in run.processes():
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("name", "saved", "words"),
    [("accelerate", "done", "begins at step [1-9]"), ("lightning", "last.ckpt", "Restored all states from")],
)
def test_a_script_goes_on_after_a_killed_worker(begin: Any, tmp_path: Path, name: str, saved: str, words: str) -> None:
    """Unmodified, two members on this machine; it begins with its own newest checkpoint."""
    folder = tmp_path / "checkpoints"
    run = begin(name, folder)
    run.until((folder / saved).exists, "a checkpoint of the script's")
    os.kill(max(run.processes(str(tmp_path / "train.py"))), signal.SIGKILL)
    run.ends_with(0)
    assert (run.status["state"], run.status["restarts"]) == ("Complete", 1)
    assert re.search(words, run.output.read_text())
