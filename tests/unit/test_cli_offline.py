"""The commands that need no cluster."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmtrain_operator.cli import main
from tests.support.specs import job

ROOT = Path(__file__).parents[2]


def llmtrain(*arguments, text=None):
    return CliRunner().invoke(main, arguments, input=text)


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        pytest.param(json.dumps(job("good")), 0, "good: valid", id="valid"),
        pytest.param(
            json.dumps(job("bad", {"training": {"maxStep": 1}})),
            1,
            "bad: spec.training.maxStep: spec.training has no maxStep (is 1). Did you mean maxSteps?",
            id="typo",
        ),
        pytest.param(json.dumps({"kind": "List", "items": [job("listed")]}), 0, "listed: valid", id="in a list"),
        pytest.param("kind: LLMTrainJob\nmetadata: {name: 12}", 1, "metadata.name: a job needs a name", id="a number"),
        pytest.param("kind: LLMTrainJob\nmetadata: j", 1, "metadata.name: a job needs a name", id="no metadata"),
        pytest.param(b"\xff\xfek\x00i\x00", 1, "not YAML", id="another encoding"),
        pytest.param(json.dumps(job("flat") | {"spec": [1]}), 1, "flat: spec: it is no object", id="a list for a spec"),
        pytest.param("kind: ConfigMap", 1, "there is no LLMTrainJob in it", id="something else"),
        pytest.param("a: [", 1, "not YAML", id="no YAML"),
        pytest.param(
            json.dumps(job("old") | {"apiVersion": "llmtrain.io/v0"}), 1, "Write llmtrain.io/v1alpha1", id="version"
        ),
        pytest.param(
            json.dumps(job("one", {"model": None})) + "\n---\n" + json.dumps(job("two")), 1, "two: valid", id="several"
        ),
    ],
)
def test_validate_says_what_the_operator_would(text, code, says):
    """Exit code 1 and a line per problem, before anything is applied."""
    result = llmtrain("validate", "-", text=text)
    assert (result.exit_code, says in result.output) == (code, True), result.output


def test_crd_prints_the_file():
    """What `make crd` writes and the chart installs."""
    assert llmtrain("crd").output == (ROOT / "crds/llmtrainjobs.yaml").read_text()


def test_the_offline_commands_load_no_kubernetes_client():
    """They work where only the core dependencies are installed, and start fast."""
    code = "import sys, llmtrain_operator.cli; sys.exit('kubernetes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT / "operator", timeout=60).returncode == 0


def test_a_name_and_all_namespaces_contradict():
    """Wrong usage is exit code 2 and says why."""
    result = llmtrain("status", "job", "-A")
    assert (result.exit_code, "either NAME or --all-namespaces" in result.output) == (2, True)


@pytest.mark.parametrize("name", ["", "a/b", "Job"])
@pytest.mark.parametrize("words", [("status",), ("suspend",), ("scale", 2), ("events",)], ids=lambda words: words[0])
def test_what_is_no_name_is_told_before_anything_is_asked(words, name):
    """An unset variable in a script must not mean all jobs."""
    command, *more = words
    result = llmtrain(command, name, *map(str, more))
    assert (result.exit_code, f"{name!r} is no name of a job" in result.output) == (2, True), result.output


def checkpoints(*words, **environment):
    """`llmtrain checkpoints` in a process of its own, since the trainer's tool writes to the process's own output."""
    code = "from llmtrain_operator.cli import main; main()"
    paths = {"PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'trainer_image'}", "PATH": "/usr/bin"}
    command = [sys.executable, "-c", code, "checkpoints", *words]
    return subprocess.run(command, env=paths | environment, capture_output=True, text=True, timeout=60)


def test_checkpoints_of_a_storage_need_no_job(tmp_path):
    """The trainer's own tool runs here; what it prints and its exit code are passed on."""
    listed = checkpoints("ls", "--json", "--storage", f"file://{tmp_path}")
    assert (listed.returncode, json.loads(listed.stdout)["checkpoints"]) == (0, [])
    verified = checkpoints("verify", "--storage", f"file://{tmp_path}")
    assert (verified.returncode, "has no checkpoint" in verified.stdout) == (1, True)
    exported = checkpoints("export", "--to", str(tmp_path / "model"), "--storage", f"file://{tmp_path}")
    assert (exported.returncode, "has no valid checkpoint to export" in exported.stderr) == (2, True)


def test_checkpoints_want_a_job_or_a_storage():
    """Not both, not neither; what is not in a cluster is looked for in the runs of this machine."""
    assert llmtrain("checkpoints", "ls").exit_code == 2
    assert llmtrain("checkpoints", "ls", "job", "--storage", "file:///x").exit_code == 2


def test_checkpoints_of_a_run_that_never_was(tmp_path):
    """With where to look."""
    unknown = checkpoints("ls", "job", "--local", LLMTRAIN_CACHE=str(tmp_path))
    assert (unknown.returncode, "there is no local run job" in unknown.stderr) == (1, True)
