"""Models and tokenizers by hub id, from a hub on loopback."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from llmtrain_operator.contract import names
from llmtrain_operator.contract.uris import hub_id
from tests.support import hub

ROOT = Path(__file__).parents[2]
CODE = """
import sys
from llmtrain_trainer import hub
from llmtrain_trainer.errors import TrainerError
try:
    print(hub.local_directory(sys.argv[1], "spec.model.pretrained", hub.MODEL_FILES))
except TrainerError as error:
    sys.exit(f"{error.reason}: {error}")
"""


@pytest.fixture
def repository(tmp_path):
    directory = tmp_path / "repository"
    directory.mkdir()
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "modeling_evil.py", "tokenizer.json"):
        (directory / name).write_text(name)
    return directory


@pytest.fixture
def fetch(tmp_path):
    """Fetch in a process of its own, since the library reads its environment once: exit code and what was printed."""

    def run(place, endpoint, **environment):
        done = subprocess.run(
            [sys.executable, "-c", CODE, place],
            env={
                "PATH": "/usr/bin",
                "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'trainer_image'}",
                "HF_HOME": str(tmp_path / "cache"),
                "HF_ENDPOINT": endpoint,
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout.strip() or done.stderr.strip().splitlines()[-1]

    return run


@pytest.mark.parametrize("revision", ["", "@main", "@{commit}"])
def test_weights_and_config_are_fetched_but_no_code(repository, fetch, revision):
    """At the revision that is asked for."""
    with hub.serving({"org/tiny": repository}) as endpoint:
        code, directory = fetch("org/tiny" + revision.format(commit=hub.commit(repository)), endpoint)
    assert code == 0, directory
    assert {file.name for file in Path(directory).iterdir()} == {"config.json", "model.safetensors"}


def test_what_was_fetched_is_used_when_the_hub_is_away(repository, fetch):
    """A restart does not depend on it."""
    with hub.serving({"org/tiny": repository}) as endpoint:
        first = fetch("org/tiny", endpoint)
    assert fetch("org/tiny", endpoint) == first


def test_a_gated_model_needs_a_token(repository, fetch):
    """From HF_TOKEN; without it the remedy is named."""
    with hub.serving({"org/tiny": repository}, gated={"org/tiny"}) as endpoint:
        code, words = fetch("org/tiny", endpoint)
        assert (code, words.startswith(names.REASON_INVALID_CONFIG), "HF_TOKEN" in words) == (1, True, True)
        assert fetch("org/tiny", endpoint, HF_TOKEN=hub.TOKEN)[0] == 0


@pytest.mark.parametrize(
    ("place", "says"),
    [("org/other", "shows no org/other"), ("org/tiny@nowhere", "has no branch, tag or commit nowhere")],
)
def test_what_is_not_there_is_an_error_of_the_spec(repository, fetch, place, says):
    """A restart would not find it either."""
    with hub.serving({"org/tiny": repository}) as endpoint:
        code, words = fetch(place, endpoint)
    assert (code, words.startswith(names.REASON_INVALID_CONFIG), says in words) == (1, True, True), words


def test_a_hub_that_does_not_answer_may_come_back(fetch):
    """So it is no permanent error; the words say what to look at."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    code, words = fetch("org/tiny", endpoint)
    assert (code, words.startswith(names.REASON_STORAGE_UNREACHABLE), "HF_ENDPOINT" in words) == (1, True, True), words
    assert names.REASON_STORAGE_UNREACHABLE not in names.PERMANENT_REASONS


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("org/name", ("org/name", None)),
        ("org/name@v1.0", ("org/name", "v1.0")),
        ("org/name@refs/pr/1", ("org/name", "refs/pr/1")),
        ("/org/name", None),
        ("name", None),
        ("a/b/c", None),
        ("pvc://claim/path", None),
        ("byte", None),
    ],
)
def test_a_hub_id_is_no_path(place, found):
    """What begins with a slash or has a scheme lies in the pod."""
    assert hub_id(place) == found
