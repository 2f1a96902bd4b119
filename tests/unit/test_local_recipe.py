"""A member's pod as a process on this machine."""

from __future__ import annotations

import json

import pytest

from llmtrain_operator.api.validation import parse
from llmtrain_operator.contract import names
from llmtrain_operator.local.init import descendants
from llmtrain_operator.local.pods import own_port
from llmtrain_operator.local.recipe import accelerators, recipe
from llmtrain_operator.manifests import Settings, member_pod
from llmtrain_operator.ports import Rejected
from llmtrain_operator.state import JobView
from tests.support.specs import job

OUTER = {"HOME": "/home/me", "PATH": "/bin", "FROM_SECRET": "s3cret"}


def made(template=None, outer=OUTER, **spec):
    """The recipe of member 1 of a job with this pod template."""
    raw = job("j", spec | ({"template": {"spec": template}} if template else {}))
    parsed, problems = parse("j", raw["spec"])
    assert parsed, problems
    view = JobView("j", "default", "job-uid", 1)
    pod = member_pod(view, parsed, 1, 3, Settings("local", "local", "ws://127.0.0.1:1", ""))
    pod["metadata"]["uid"] = "pod-uid"
    return recipe(pod, outer, {names.ENV_VOLUMES: "/volumes"}, "/usr/bin/python")


def trainer(**fields):
    """A template for the trainer's container."""
    return {"containers": [{"name": names.CONTAINER, **fields}]}


def test_the_process_gets_what_the_pod_would_have():
    """Same variables as in a cluster; what the kubelet fills in is filled in; home and path are the user's."""
    found = made(output="pvc://models/out")
    assert found.command == ("/usr/bin/python", "-u", "-m", "llmtrain_trainer.agent")
    told = found.environment
    assert (told[names.ENV_POD_UID], told[names.ENV_POD_IP]) == ("pod-uid", "127.0.0.1")
    assert (told[names.ENV_POD_NAME], told[names.ENV_JOB]) == ("j-1-3", "default/j")
    assert (told["HOME"], told["PATH"], told[names.ENV_VOLUMES]) == ("/home/me", "/bin", "/volumes")
    assert json.loads(told[names.ENV_SPEC])["output"] == "pvc://models/out"
    assert (found.claims, found.grace) == (("models",), 60)


def test_the_template_has_its_say():
    """Command, arguments, directory and variables of the user's container hold here too."""
    found = made(
        trainer(command=["torchrun"], args=["x.py"], workingDir="/src", env=[{"name": "A", "value": "1"}]),
        entrypoint={"script": "x.py"},
    )
    assert (found.command, found.directory, found.environment["A"]) == (("torchrun", "x.py"), "/src", "1")


@pytest.mark.parametrize(("name", "there"), [("FROM_SECRET", True), ("ABSENT", False)])
def test_a_secret_comes_from_the_callers_environment(name, there):
    """Nothing else could know it; without it the job is told so by name instead of training with an empty value."""
    env = [{"name": name, "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]
    if there:
        assert made(trainer(env=env)).environment[name] == "s3cret"
    else:
        with pytest.raises(Rejected, match=f"set {name} in the environment"):
            made(trainer(env=env))


@pytest.mark.parametrize(
    ("node", "procs", "nodes", "available", "share"),
    [
        pytest.param(1, 2, 2, ("0", "1", "2", "3"), "2,3", id="own share"),
        pytest.param(0, 1, 1, ("5", "7"), "5", id="named by the user"),
        pytest.param(0, 1, 2, ("0",), "", id="they do not go round"),
    ],
)
def test_nodes_share_the_accelerators(node, procs, nodes, available, share):
    """No two members on one device; all on the CPU if there are too few."""
    assert accelerators(node, procs, nodes, available) == share


def test_descendants_are_found_at_any_depth():
    """Children of children count, relatives of others do not."""
    assert descendants(10, {11: 10, 12: 11, 13: 12, 20: 1, 21: 20, 10: 1}) == {11, 12, 13}


@pytest.mark.parametrize(
    ("first", "index", "expected"), [("9402", 0, "9402"), ("9402", 3, "9405"), ("0", 3, "0"), ("x", 1, "0")]
)
def test_members_of_one_machine_have_ports_of_their_own(first, index, expected):
    """Counted from the one that the caller names for the first; one that is no number is none."""
    assert own_port(first, index) == expected
