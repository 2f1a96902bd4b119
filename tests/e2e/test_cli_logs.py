"""`llmtrain logs` with containers that really print: several members, replacements, and the end."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from devcluster import images
from llmtrain_operator.contract import names
from tests.support.specs import job

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-c", "from llmtrain_operator.cli import main; main(prog_name='llmtrain')")
# Held, so that the operator makes no members of its own beside the ones that the tests make.
JOB = job("job", {"suspend": True})
SPEAKER = "for i in range(3): print('line', i)"


@pytest.fixture
def members(kubectl):
    """Make a member's pod that runs a line of Python and ends."""
    kubectl.apply(JOB)

    def make(index, incarnation, code):
        name = f"job-{index}-{incarnation}"
        labels = {names.LABEL_JOB: "job", names.LABEL_INDEX: str(index), names.LABEL_INCARNATION: str(incarnation)}
        container = {
            "name": names.CONTAINER,
            "image": images.image_name("operator"),
            "imagePullPolicy": "Never",
            "command": ["python", "-uc", code],
        }
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels},
            "spec": {"restartPolicy": "Never", "containers": [container], "terminationGracePeriodSeconds": 1},
        }
        kubectl.apply(pod)
        return name

    return make


def llmtrain(kubectl, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator"), "KUBECONFIG": str(kubectl.kubeconfig)}
    return subprocess.Popen(
        [*COMMAND, *arguments, "-n", kubectl.namespace], env=environment, text=True, stdout=subprocess.PIPE
    )


def output(process):
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return printed.splitlines()


def test_each_members_newest_log_is_printed(kubectl, members):
    """In order of member, each line marked; `--member` and `--tail` narrow it down."""
    for index, incarnation, code in ((0, 1, "print('old')"), (0, 2, SPEAKER), (1, 1, SPEAKER)):
        name = members(index, incarnation, code)
        kubectl.wait(f"pod/{name}", "jsonpath={.status.phase}=Succeeded", 60)
    every = [f"[{member}] line {i}" for member in (0, 1) for i in range(3)]
    assert output(llmtrain(kubectl, "logs", "job")) == every
    assert output(llmtrain(kubectl, "logs", "job", "--member", "1", "--tail", "2")) == every[-2:]


def test_following_takes_up_replacements_and_ends_with_the_job(kubectl, members):
    """A member that is replaced goes on being followed under the same number."""
    members(0, 1, "import time; print('first', flush=True); time.sleep(3); print('last words')")
    following = llmtrain(kubectl, "logs", "job", "--follow")
    assert following.stdout.readline() == "[0] first\n"
    members(0, 2, "print('replacement')")
    assert {following.stdout.readline() for _ in range(2)} == {"[0] last words\n", "[0] replacement\n"}
    end = '{"status": {"completionTime": "2026-01-01T00:00:00Z"}}'
    kubectl("patch", "ltj/job", "--subresource=status", "--type=merge", "-p", end)
    assert output(following) == []


def test_a_support_bundle_has_the_logs_of_members_and_operator(kubectl, members, tmp_path):
    """With what looks like a secret taken out, and nothing missing for an administrator."""
    name = members(0, 1, "print('password=hunter2hunter2 and a word')")
    kubectl.wait(f"pod/{name}", "jsonpath={.status.phase}=Succeeded", 60)
    said = output(llmtrain(kubectl, "support-bundle", "job", "--output", str(tmp_path / "b.tar.gz")))
    assert not [line for line in said if line.startswith("not in it")]
    with tarfile.open(tmp_path / "b.tar.gz") as archive:
        texts = {each.name.partition("/")[2]: archive.extractfile(each).read().decode() for each in archive}
    assert "password=<redacted> and a word" in texts["logs/job-0-1-trainer.log"]
    assert any(name.startswith("operator/logs/") and name.endswith("-coordinator.log") for name in texts)
    assert "the operator's deployment in llmtrain-system, from llmtrain-" in texts["README.txt"]
    assert "kubeletVersion" in texts["nodes.yaml"]
