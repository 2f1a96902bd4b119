"""A training job on real kubelets: from apply to the exported model, and through what can happen on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from devcluster.chaos import SYSTEM
from devcluster.cluster import Cluster
from tests.support.jobs import FOREVER, REQUESTS, claim, job, members, until_training, workers
from tests.support.kube import Kubectl, KubectlError


def test_a_job_trains_to_its_end_and_exports_its_model(kubectl: Kubectl, installed: Cluster) -> None:
    """Three members on three nodes train a DeepSpeed job; the loss falls, the story is told, the model is there."""
    kubectl.apply(claim("models"), job(steps=30, members=3, output="pvc://models/j"))
    kubectl.wait("ltj/j", "condition=Complete")
    status = kubectl.job("j")
    assert status["progress"]["step"] == 30
    assert status["progress"]["loss"] < 4.5 < 5.5  # ln(257) is 5.55: what an untrained byte model has
    assert status["progress"]["perplexity"] < 200
    assert (status["restarts"], status["nodes"], status["rounds"]) == (0, "3/3", 1)
    assert sum(status["ledger"].values()) > 0
    pods = members(kubectl)
    assert {pod["spec"]["nodeName"] for pod in pods.values()} == {"n1", "n2", "n3"}
    volume = kubectl.get("pvc", "models")["spec"]["volumeName"]
    exported = installed.shared / volume / "j"
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {file.name for file in exported.iterdir()}
    assert json.loads((exported / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    reasons = {event["reason"] for event in kubectl.items("event")}
    assert {"RoundStarted", "Completed"} <= reasons
    row = kubectl("get", "ltj", "j", "--no-headers").split()
    assert row[:4] == ["j", "Complete", "3/3", "30"]
    kubectl("delete", "ltj", "j")
    kubectl("wait", "pod", "--all", "--for=delete", "--timeout=60s")
    for kind in ("service", "pdb", "serviceaccount"):
        left = {item["metadata"]["name"] for item in kubectl.items(kind)} - {"default"}
        assert not left, f"{kind} left behind"


def test_the_operator_may_die_while_a_job_trains(kubectl: Kubectl, installed: Cluster) -> None:
    """Operator and coordinator are killed: the same workers train on, and the new operator follows them to the end."""
    kubectl.apply(job(steps=250, template=REQUESTS))
    until_training(kubectl)
    before = kubectl.job("j")
    nodes = {pod["spec"]["nodeName"] for pod in members(kubectl).values()}
    running = {node: workers(installed, node) for node in nodes}
    system = Kubectl(installed.kubectl, installed.kubeconfig, SYSTEM)
    system("delete", "pod", "--all", "--force", "--grace-period=0")
    system("rollout", "status", "deploy/llmtrain", "--timeout=60s", timeout=70)
    for node in nodes:  # by now they may have finished, one after the other
        assert set(workers(installed, node)) <= set(running[node]), kubectl.job("j").get("lastFailure")
    kubectl.wait("ltj/j", "condition=Complete")
    after = kubectl.job("j")
    assert (after["restarts"], after["rounds"]) == (0, 1)
    uids = [[member["uid"] for member in status["round"]["members"]] for status in (before, after)]
    assert uids[0] == uids[1]
    assert after["startTime"] == before["startTime"]


def test_a_killed_worker_gives_a_new_round(kubectl: Kubectl, installed: Cluster) -> None:
    """The pods stay, the next round begins with the same members, the status says what happened, the job finishes."""
    kubectl.apply(job(steps=100))
    until_training(kubectl)
    pods = members(kubectl)
    victim = pods["j-1-1"]["spec"]["nodeName"]
    installed.node(victim).run(["kill", "-9", *map(str, workers(installed, victim))])
    kubectl.wait("ltj/j", "jsonpath={.status.restarts}=1", 30)
    failure = kubectl.job("j")["lastFailure"]
    assert (failure["reason"], failure["member"], failure["signal"]) == ("Killed", 1, 9)
    kubectl.wait("ltj/j", "condition=Complete")
    status = kubectl.job("j")
    assert (status["rounds"], status["failuresCounted"], status["progress"]["step"]) == (2, 1, 100)
    assert {pod["metadata"]["uid"] for pod in members(kubectl).values()} == {
        p["metadata"]["uid"] for p in pods.values()
    }


def test_a_deleted_pod_is_replaced(kubectl: Kubectl) -> None:
    """Its successor has a new name; the loss is not counted against the user's budget.

    Without grace: with only a second of it the member would often have left at a step's end, which is no loss.
    """
    kubectl.apply(job(steps=100))
    until_training(kubectl)
    kubectl("delete", "pod", "j-0-1", "--grace-period=0", "--force")
    kubectl.wait("ltj/j", "condition=Complete")
    status = kubectl.job("j")
    assert {"j-0-2", "j-1-1"} <= set(members(kubectl))
    assert (status["restarts"], status["failuresCounted"], status["lastFailure"]["reason"]) == (1, 0, "PodLost")


def test_a_node_that_dies_is_left_behind(kubectl: Kubectl, installed: Cluster) -> None:
    """The plug is pulled on a member's node: its silence ends the round, and a new pod on another node trains on."""
    kubectl.apply(job(steps=150))
    until_training(kubectl)
    lost = members(kubectl)["j-1-1"]["spec"]["nodeName"]
    node = installed.node(lost)
    node.off()
    try:
        kubectl.wait("ltj/j", "condition=Complete")
        status = kubectl.job("j")
        assert (status["restarts"], status["failuresCounted"]) == (1, 0), json.dumps(status["lastFailure"])
        # Whichever is noticed first: the connection that broke, or the silence.
        assert status["lastFailure"]["reason"] in ("PeerLost", "UserError", "PodLost")
        replaced = next(member for member in status["round"]["members"] if member["index"] == 1)
        assert replaced["incarnation"] > 1
        assert members(kubectl)[replaced["pod"]]["spec"]["nodeName"] != lost
    finally:
        node.on()


def test_suspend_and_resume(kubectl: Kubectl) -> None:
    """Suspending discards training only with the user's word; it frees the nodes; resuming trains to the end."""
    kubectl.apply(job(steps=FOREVER))
    until_training(kubectl)
    kubectl("patch", "ltj", "j", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    kubectl.wait("ltj/j", "jsonpath={.status.conditions[?(@.type=='Suspended')].reason}=ProgressWouldBeLost", 20)
    assert kubectl.job("j")["state"] == "Running"
    kubectl("annotate", "ltj", "j", "llmtrain.io/discard-progress=true")
    kubectl.wait("ltj/j", "condition=Suspended", 20)
    kubectl("wait", "pod", "--all", "--for=delete", "--timeout=60s")
    # What is immutable while a job runs may be changed while it is suspended.
    change = {"spec": {"suspend": False, "training": {"maxSteps": 10, "globalBatchSize": 6}}}
    kubectl("patch", "ltj", "j", "--type=merge", "-p", json.dumps(change))
    kubectl.wait("ltj/j", "condition=Complete")
    assert kubectl.job("j")["progress"]["step"] == 10


def test_suspended_from_the_start(kubectl: Kubectl) -> None:
    """A queue such as Kueue creates jobs suspended and injects placement before letting them go; later they expire."""
    kubectl.apply(job(suspend=True, ttlSecondsAfterFinished=4))
    kubectl.wait("ltj/j", "condition=Suspended", 20)
    assert not members(kubectl)
    template = {"spec": {"nodeSelector": {"kubernetes.io/hostname": "n2"}}}
    change = {"spec": {"suspend": False, "template": template}}
    kubectl("patch", "ltj", "j", "--type=merge", "-p", json.dumps(change))
    kubectl.wait("ltj/j", "condition=Complete")
    assert {pod["spec"]["nodeName"] for pod in members(kubectl).values()} == {"n2"}
    kubectl("wait", "ltj/j", "--for=delete", "--timeout=30s")
    kubectl("wait", "pod", "--all", "--for=delete", "--timeout=30s")


def test_a_users_own_torchrun_script_in_an_image_of_theirs(kubectl: Kubectl, users_image: str) -> None:
    """An unmodified DDP script runs under our agent, which is copied into an image that is not ours."""
    script = (Path(__file__).parents[1] / "support" / "scripts" / "train_ddp.py").read_text()
    mount = {"name": "code", "mountPath": "/code"}
    theirs = job(
        image=users_image,
        entrypoint={"script": "/code/train_ddp.py", "args": ["--steps", "20"]},
        template={
            "spec": {
                "volumes": [{"name": "code", "configMap": {"name": "code"}}],
                "containers": [{"name": "trainer", "volumeMounts": [mount]}],
            }
        },
    )
    for section in ("model", "data", "training"):
        del theirs["spec"][section]
    code = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "code"}, "data": {"train_ddp.py": script}}
    kubectl.apply(code, theirs)
    kubectl.wait("ltj/j", "condition=Complete")
    log = kubectl("logs", "j-0-1", "-c", "trainer")
    assert "[rank 0] step 20" in log
    assert "world size 2" in log


def test_shortage_of_accelerators(kubectl: Kubectl) -> None:
    """Two per node and three nodes: four members of two cannot all run, so the job starts with the three that can."""
    kubectl.apply(job(nodes={"min": 2, "max": 4, "acceleratorResource": "nvidia.com/gpu", "procPerNode": 2}))
    kubectl.wait("ltj/j", "condition=Complete", 180)
    status = kubectl.job("j")
    assert status["nodes"] == "3/4"
    assert "Insufficient nvidia.com/gpu" in status["round"]["reason"]


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        pytest.param({"data": {"source": "/nowhere"}}, "DataMissing", "/nowhere", id="data-missing"),
        pytest.param(
            {"model": {"config": {"model_type": "gpt2", "vocab_size": 50, "n_embd": 32, "n_layer": 1, "n_head": 2}}},
            "VocabularyMismatch",
            "50",
            id="vocabulary",
        ),
        pytest.param(
            {"training": {"maxSteps": 50, "precision": "fp32", "optimizer": {"type": "SGD", "lr": 1e30}}},
            "NonFiniteLoss",
            "step",
            id="nan",
        ),
        pytest.param({"output": "/usr/out"}, "OutputUnwritable", "/usr/out", id="output"),
    ],
)
def test_trainer_errors_end_the_job_by_name(kubectl: Kubectl, change, reason, words) -> None:
    """What no restart can cure fails the job, in the trainer's own words."""
    kubectl.apply(job(members=1, recovery={"maxRestarts": 1}, **change))
    kubectl.wait("ltj/j", "condition=Failed")
    failure = kubectl.job("j")["lastFailure"]
    assert failure["reason"] == reason
    assert words in failure["message"]
    assert words in kubectl.condition("j", "Failed")["message"]


def test_an_image_that_cannot_be_pulled_shows_in_the_condition(kubectl: Kubectl) -> None:
    """The job waits, and says for whom and why."""
    kubectl.apply(job(image="localhost/no-such-image:1", members=1))
    reason = "jsonpath={.status.conditions[?(@.type=='Running')].reason}=WaitingForMembers"
    kubectl.wait("ltj/j", reason, 20)
    kubectl.wait("pod/j-0-1", "jsonpath={.status.initContainerStatuses[0].state.terminated.reason}=Completed", 30)
    kubectl.wait("pod/j-0-1", "jsonpath={.status.containerStatuses[0].state.waiting.reason}=ErrImagePull", 30)
    message = kubectl.condition("j", "Running")["message"]
    assert "member 0" in message


def refused(kubectl: Kubectl, thing: dict[str, Any]) -> str | None:
    """What the API server says against an object, None if it takes it."""
    try:
        kubectl.apply(thing)
    except KubectlError as error:
        return str(error)
    return None


BAD = [
    pytest.param({"nodes": {"min": 3, "max": 2}}, "nodes.min must not be greater", id="min-over-max"),
    pytest.param({"model": {}}, "exactly one of model.preset", id="no-model"),
    pytest.param({"model": {"preset": "gpt-5"}}, "Unsupported value", id="unknown-preset"),
    pytest.param({"training": {"maxSteps": 0}}, "greater than or equal to 1", id="no-steps"),
    pytest.param({"trainning": {}}, "unknown field", id="misspelt-field"),
    pytest.param({"deepspeed": {"config": {"zero_optimisation": {}}}}, "zero_optimization", id="unknown-deepspeed-key"),
    pytest.param(
        {"deepspeed": {"stage": 1, "config": {"zero_optimization": {"stage": 3}}}},
        "deepspeed.stage",
        id="contradiction",
    ),
    pytest.param(
        {"template": {"spec": {"restartPolicy": "Always"}}}, "restartPolicy", id="template-that-breaks-members"
    ),
    pytest.param({"output": "ftp://x/y"}, "spec.output", id="unknown-uri"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_a_bad_spec_is_refused_or_explained_before_a_pod_exists(kubectl: Kubectl, change, words) -> None:
    """The API server refuses what CEL can say; the rest becomes a condition with path, value and remedy."""
    refusal = refused(kubectl, job(**change))
    if refusal is not None:
        assert words in refusal
        return
    kubectl.wait("ltj/j", "condition=Valid=False", 20)
    assert words in kubectl.condition("j", "Valid")["message"]
    assert kubectl.job("j")["state"] == "Invalid"
    assert not members(kubectl)
