"""The images as pods get them: they work unprivileged on a read-only root; new source is on every node in seconds."""

import contextlib
import json
import secrets
import shutil
import time
from pathlib import Path

import pytest

from devcluster import images
from devcluster.cluster import Cluster
from devcluster.images.builder import REPOSITORY, SOURCES
from tests.support.kube import Kubectl

COPIED_BYTES = 64 << 20  # metadata and what pods write; one copy of the dependencies would be a hundred times that


@pytest.fixture
def kubectl(cluster: Cluster):
    """kubectl in a namespace that admits only restricted pods."""
    base = Kubectl(cluster.kubectl, cluster.kubeconfig)
    name = f"images-{secrets.token_hex(3)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    base.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    own = Kubectl(cluster.kubectl, cluster.kubeconfig, name)
    cluster.wait(lambda: own.items("serviceaccount"), 20, "the service account")
    yield own
    base("delete", "namespace", name, "--wait=false")


def pod(name: str, image: str, code: str, node: str) -> dict:
    """A restricted pod that runs `code` with the image's python, writing nowhere but to /tmp."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": "tmp", "emptyDir": {}}],
            "containers": [
                {
                    "name": "main",
                    "image": image,
                    "command": ["python", "-c", code],
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                    "securityContext": {
                        "readOnlyRootFilesystem": True,
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }


def outputs(kubectl: Kubectl, *pods: dict) -> list[str]:
    """Run the pods to their end and return what each printed."""
    kubectl.apply(*pods)
    names = [body["metadata"]["name"] for body in pods]
    for name in names:
        kubectl.wait(f"pod/{name}", "jsonpath={.status.phase}=Succeeded")
    return [kubectl("logs", name) for name in names]


TRAINER = """
import json, pathlib, deepspeed, torch, transformers, llmtrain_trainer
from importlib.metadata import entry_points
print(json.dumps({
    "user": pathlib.os.getuid(),
    "handlers": [entry.load().__name__ for entry in entry_points(group="torchrun.handlers")],
    "stdlib source": pathlib.Path(json.__file__).read_text() != "",
}))
"""
OPERATOR = """
import json, os, pathlib, shutil, kopf, llmtrain_operator.main, llmtrain_operator.coordinator
agent = pathlib.Path("/opt/llmtrain-agent")
print(json.dumps({
    "user": os.getuid(),
    "commands": [bool(shutil.which(name)) for name in ("llmtrain", "llmtrain-operator", "llmtrain-coordinator")],
    "agent": sorted(path.name for path in agent.iterdir() if path.suffix != ".dist-info"),
    "init": os.access(agent / "catatonit", os.X_OK),
    "compiled": [str(path) for path in agent.rglob("*.so")],
}))
"""


def test_images_run_restricted(cluster: Cluster, kubectl: Kubectl):
    """Both images import what they are for as a nameless user without capabilities on a read-only root."""
    node = cluster.settings.node_names[0]
    trainer, operator = outputs(
        kubectl,
        pod("trainer", images.image_name("trainer"), TRAINER, node),
        pod("operator", images.image_name("operator"), OPERATOR, node),
    )
    found = json.loads(trainer.splitlines()[-1])
    assert found["user"] == 65532
    assert len(found["handlers"]) == 1
    assert found["stdlib source"]
    assert json.loads(operator.splitlines()[-1]) == {
        "user": 65532,
        "commands": [True, True, True],
        "agent": ["catatonit", "llmtrain_operator", "llmtrain_trainer", "prometheus_client", "websockets"],
        "init": True,
        "compiled": [],
    }


def disk_usage(directory: Path) -> int:
    """Bytes below `directory` as this machine sees them: without what is mounted there only on the node."""
    sizes = 0
    for path in directory.rglob("*"):
        # Containers come and go meanwhile.
        with contextlib.suppress(FileNotFoundError):
            sizes += path.lstat().st_blocks * 512
    return sizes


@pytest.fixture
def changed_tree(tmp_path):
    """The sources with a module that is in no image yet, and its text."""
    for name in SOURCES:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, tmp_path / name)
    text = secrets.token_hex(8)
    (tmp_path / "operator" / "llmtrain_operator" / "contract" / "marker.py").write_text(f"MARKER = {text!r}\n")
    return tmp_path, text


@pytest.fixture
def tag():
    """A tag of the test's own; its images are forgotten afterwards."""
    name = f"test-{secrets.token_hex(3)}"
    yield name
    images.forget(name)


def test_source_change_reaches_all_nodes_in_seconds(cluster: Cluster, kubectl: Kubectl, changed_tree, tag):
    """A changed source becomes one new layer per image, and every node runs it without a copy of the dependencies."""
    tree, text = changed_tree
    begun = time.monotonic()
    built = {image.name: image for image in images.build(repository=tree, tag=tag)}
    after_build = time.monotonic()
    cluster.load_images()
    print(f"build {after_build - begun:.1f} s, load {time.monotonic() - after_build:.1f} s")
    current = {image.name: image for image in images.images()}
    code = "from llmtrain_operator.contract import marker; print(marker.MARKER)"
    for target in images.TARGETS:
        name = images.image_name(target, tag)
        assert built[name].diff_ids[:-1] == current[images.image_name(target)].diff_ids[:-1]
        pods = [pod(f"{target}-{node}", name, code, node) for node in cluster.settings.node_names]
        assert outputs(kubectl, *pods) == [f"{text}\n"] * len(pods)
    for node in cluster.nodes:
        assert disk_usage(node.machine.dir / "containerd") < COPIED_BYTES
