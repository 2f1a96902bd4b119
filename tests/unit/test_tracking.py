"""What `spec.tracking` means for a job's pods, its network, and its conditions."""

from __future__ import annotations

import pytest

from llmtrain_operator import places
from llmtrain_operator.api import JobSpec
from llmtrain_operator.conditions import find
from llmtrain_operator.contract.secrets import is_secret
from llmtrain_operator.contract.wire import Checkpoints, Progress, Tracking
from llmtrain_operator.network import tracker_rules
from llmtrain_trainer import config
from llmtrain_trainer.errors import ConfigError
from llmtrain_trainer.trackers.backends import chosen, make
from tests.support.elastic import Job, training
from tests.support.planner import agent
from tests.support.specs import patched

KEY = {"credentials": {"secretName": "keys"}}
EVERYTHING = {
    "everySteps": 10,
    "tensorboard": {"dir": "pvc://logs/j"},
    "wandb": {"project": "p", **KEY},
    "swanlab": {"project": "p", "host": "https://192.0.2.7:8443", **KEY},
    "mlflow": {
        "trackingUri": "http://mlflow.tools.svc:5000",
        "credentials": {"secretName": "m", "usernameKey": "u", "passwordKey": "p"},
    },
}


def _spec(tracking) -> JobSpec:
    return JobSpec.model_validate(patched({"tracking": tracking}))


def test_keys_reach_the_trainer_from_their_secrets_and_are_known_as_such():
    """By the variables that the libraries read; the operator sees no value."""
    found = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in places.tracker_environment(_spec(EVERYTHING))}
    assert found == {
        "WANDB_API_KEY": {"name": "keys", "key": "API_KEY"},
        "SWANLAB_API_KEY": {"name": "keys", "key": "API_KEY"},
        "MLFLOW_TRACKING_USERNAME": {"name": "m", "key": "u"},
        "MLFLOW_TRACKING_PASSWORD": {"name": "m", "key": "p"},
    }
    assert all(is_secret(name) for name in found if not name.endswith("USERNAME"))
    assert places.tracker_environment(JobSpec.model_validate(patched({}))) == []


def test_claims_of_trackers_are_mounted():
    """Those of folders, and no server is taken for one."""
    assert places.claims(_spec(EVERYTHING)) == ["logs"]
    offline = {"project": "p", "mode": "offline", "dir": "pvc://w/j"}
    folders = {"wandb": offline, "mlflow": {"trackingUri": "pvc://m/j"}}
    assert places.claims(_spec(folders)) == ["m", "w"]


@pytest.mark.parametrize(
    ("tracking", "rules"),
    [
        ({"tensorboard": {"dir": "/d"}}, []),
        ({"wandb": {"project": "p", "mode": "offline", "dir": "/d"}}, []),
        ({"wandb": {"project": "p", **KEY}, "swanlab": {"project": "p", **KEY}}, [{"ports": [443]}]),
        ({"mlflow": {"trackingUri": "http://mlflow.tools.svc:5000"}}, [{"namespace": "tools"}]),
        ({"mlflow": {"trackingUri": "https://192.0.2.7"}}, [{"ports": [443], "cidr": "192.0.2.7/32"}]),
    ],
    ids=["files", "offline", "services", "in-the-cluster", "by-address"],
)
def test_servers_of_trackers_can_be_reached_and_nothing_else(tracking, rules):
    """What is written to files needs no way out."""
    assert [_short(rule) for rule in tracker_rules(_spec(tracking))] == rules


def _short(rule):
    found = {"ports": [port["port"] for port in rule["ports"]]} if "ports" in rule else {}
    for peer in rule.get("to", ()):
        if "ipBlock" in peer:
            found["cidr"] = peer["ipBlock"]["cidr"]
        else:
            [found["namespace"]] = peer["namespaceSelector"]["matchLabels"].values()
    return found


def test_the_trainer_reads_what_the_operator_writes():
    """Every backend of the spec is one that it can make, and no other."""
    given = config.parse(_spec(EVERYTHING).model_dump_json(by_alias=True))
    assert given.tracking
    assert given.tracking.every_steps == 10
    assert chosen(given) == ("tensorboard", "wandb", "swanlab", "mlflow")
    for name in chosen(given):
        make(name, given)
    without = config.parse(JobSpec.model_validate(patched({})).model_dump_json(by_alias=True))
    assert chosen(without) == ()
    with pytest.raises(ConfigError, match=r"spec.tracking.wandb: the job does not ask for it"):
        make("wandb", without)


class _Tracked(Job):
    """A job with a tracker; `hear` is a pass over what rank 0 says of it."""

    def __init__(self):
        super().__init__(tracking={"tensorboard": {"dir": "/d"}})

    def hear(self, said: Tracking | None):
        progress = Progress(0, 1, step=41, max_steps=1000, step_seconds=1.0, checkpoints=Checkpoints(30), tracking=said)
        first = agent(0, "running", 1, store_port=5000, progress=progress)
        self.look(first, training(1, at=41), training(2, at=41))
        return find(self.status.conditions, "Tracked")


def test_the_condition_says_how_the_trackers_fare():
    """Unknown at first, True with the first point, False with what is wrong and what to do, and one event for that."""
    job = _Tracked()
    assert job.hear(None) is None
    assert (job.hear(Tracking()).status, job.reason("Tracked")) == ("Unknown", "NotYetRecorded")
    assert (job.hear(Tracking(kept=True)).status, job.reason("Tracked")) == ("True", "Recorded")
    found = job.hear(Tracking(True, "TrackerFailed", "MLflow: ConnectionError: refused"))
    assert (found.status, found.reason) == ("False", "TrackerFailed")
    assert found.message.startswith("MLflow: ConnectionError: refused; training goes on")
    assert "TrackingFailed" in job.events
    job.hear(Tracking(True, "TrackerFailed", "MLflow: ConnectionError: refused"))
    assert "TrackingFailed" not in job.events
    assert job.hear(Tracking(kept=True)).status == "True"


def test_a_job_without_trackers_has_no_such_condition():
    """Whatever an agent says."""
    job = Job()
    job.look(*(training(index, at=41) for index in range(3)))
    assert find(job.status.conditions, "Tracked") is None
