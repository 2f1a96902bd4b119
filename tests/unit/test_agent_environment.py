import sys

import pytest

from llmtrain_operator.contract import names
from llmtrain_trainer.agent import environment
from llmtrain_trainer.agent.environment import (
    Environment,
    EnvironmentIncomplete,
    forkable,
    runs_reference_trainer,
    threads_per_worker,
    worker_command,
)

POD = {
    names.ENV_JOB: "ns/job",
    names.ENV_POD_NAME: "job-0-0",
    names.ENV_POD_UID: "uid",
    names.ENV_INDEX: "0",
    names.ENV_INCARNATION: "0",
    names.ENV_POD_IP: "10.0.0.1",
    names.ENV_PROC_PER_NODE: "2",
    names.ENV_COORDINATOR: "wss://a:1, wss://b:1",
    names.ENV_TOKEN_FILE: "/var/run/token",
    names.ENV_SPEC: '{"entrypoint": {"module": "mine"}}',
}


def test_a_pod_knows_itself_from_its_environment():
    """Everything comes from the variables of the contract."""
    found = Environment.read(POD)
    assert (found.job, found.uid, found.procs) == ("ns/job", "uid", 2)
    assert found.coordinators == ("wss://a:1", "wss://b:1")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({names.ENV_POD_UID: ""}, names.ENV_POD_UID),
        ({names.ENV_INDEX: "first"}, f"{names.ENV_INDEX}='first'"),
        ({names.ENV_SPEC: "{"}, names.ENV_SPEC),
    ],
)
def test_a_wrong_environment_names_the_variable(changes, word):
    """A process outside an operator's pod says which variable is missing or wrong."""
    with pytest.raises(EnvironmentIncomplete, match=word):
        Environment.read({**POD, **changes})


@pytest.mark.parametrize(
    ("spec", "command"),
    [
        pytest.param({}, ["-m", "llmtrain_trainer.train"], id="the reference trainer"),
        pytest.param(
            {"entrypoint": {"script": "t.py", "args": ["--lr", 1]}}, ["t.py", "--lr", "1"], id="a user's script"
        ),
        pytest.param({"entrypoint": {"module": "m.t", "args": []}}, ["-m", "m.t"], id="a user's module"),
    ],
)
def test_workers_run_what_the_spec_says(spec, command):
    """The entrypoint if there is one, else our trainer, unbuffered so that logs are prompt."""
    assert worker_command(spec) == (sys.executable, "-u", *command)


@pytest.mark.parametrize(("limit", "procs", "threads"), [(8.0, 2, 4), (0.5, 1, 1), (3.0, 2, 1)])
def test_workers_share_the_cpus(monkeypatch, limit, procs, threads):
    """Each worker gets its share of the container's CPUs, at least one thread."""
    monkeypatch.setattr(environment, "_cpus", lambda: limit)
    assert threads_per_worker(procs) == threads


def test_a_cgroup_limit_counts(tmp_path):
    """A quota below the number of CPUs is what the container really has."""
    quota = tmp_path / "cpu.max"
    quota.write_text("50000 100000\n")
    assert environment._cpus(quota) == 0.5
    quota.write_text("max 100000\n")
    assert environment._cpus(quota) == environment._cpus(tmp_path / "absent")


@pytest.mark.parametrize(
    ("entrypoint", "program", "ours"),
    [
        (None, ("-m", "llmtrain_trainer.train"), True),
        ({"module": "llmtrain_trainer.train"}, ("-m", "llmtrain_trainer.train"), True),
        ({"script": "a.py", "args": ["x"]}, ("a.py",), False),
        ({"module": "theirs"}, (), False),
    ],
    ids=["ours", "ours by name", "a script", "a module"],
)
def test_our_trainer_and_scripts_are_forked(entrypoint, program, ours):
    """A module of the user's is not: its imports are for its workers."""
    spec = {"entrypoint": entrypoint}
    assert (forkable(spec), runs_reference_trainer(spec)) == (program, ours)
