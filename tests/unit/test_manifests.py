"""The objects that a job consists of."""

from __future__ import annotations

import dataclasses
import json

import kubernetes_validate
import pytest

from llmtrain_operator import manifests, quantity
from llmtrain_operator.api import JobSpec
from llmtrain_operator.contract import names
from llmtrain_operator.state import JobView
from tests.support import planner

JOB = JobView("j", "d", "job-uid", 1)
SETTINGS = manifests.Settings("trainer:1", "operator:1", "wss://c.llmtrain.svc:7443", "PEM", image_pull_secrets=("s",))


def spec(**fields) -> JobSpec:
    """The shortest valid job and more."""
    base = {"model": {"preset": "gpt-tiny"}, "data": {"source": "/data"}, "training": {"maxSteps": 1}}
    return JobSpec.model_validate(base | fields)


def member(job_spec: JobSpec | None = None):
    """Member 2's third pod."""
    return manifests.member_pod(JOB, job_spec or spec(), 2, 3, SETTINGS)


def environment(pod) -> dict[str, str]:
    """The trainer's variables that have plain values."""
    return {e["name"]: e["value"] for e in trainer(pod)["env"] if "value" in e}


def trainer(pod):
    """The training container."""
    return next(c for c in pod["spec"]["containers"] if c["name"] == names.CONTAINER)


@pytest.mark.parametrize(
    "job_spec",
    [
        pytest.param(spec(), id="shortest"),
        pytest.param(spec(image="mine:1", entrypoint={"script": "train.py"}), id="own-image"),
        pytest.param(
            spec(output="pvc://models/a", nodes={"acceleratorResource": "nvidia.com/gpu"}), id="claim-and-gpu"
        ),
    ],
)
def test_every_object_is_valid_kubernetes(job_spec) -> None:
    """Strictly: an unknown or misspelt field is an error."""
    for thing in [*manifests.children(JOB, job_spec, SETTINGS), member(job_spec)]:
        kubernetes_validate.validate(thing, "1.36", strict=True)
        assert thing["metadata"]["ownerReferences"][0]["uid"] == "job-uid"


def test_the_pod_can_be_told_apart_and_found() -> None:
    """Its name was never used before, its host name is stable, its labels are what the selectors look for."""
    pod = member()
    assert pod["metadata"]["name"] == "j-2-3"
    assert (pod["spec"]["hostname"], pod["spec"]["subdomain"]) == ("j-2", "j")
    assert manifests.selector(JOB).items() <= pod["metadata"]["labels"].items()
    assert environment(pod)[names.ENV_JOB] == "d/j"


def test_the_trainer_gets_the_whole_spec() -> None:
    """As JSON with all defaults, less the template, which is about the pod."""
    given = json.loads(environment(member(spec(template={"metadata": {"labels": {"a": "b"}}})))[names.ENV_SPEC])
    assert given["training"]["globalBatchSize"] == 8
    assert "template" not in given


def test_the_template_is_merged_by_name() -> None:
    """What the user or another controller puts in is kept: resources, env, volumes, gates, selectors, tolerations."""
    template = {
        "metadata": {"labels": {"team": "x"}, "annotations": {"n": "1"}},
        "spec": {
            "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "schedulingGates": [{"name": "kueue.x-k8s.io/topology"}],
            "terminationGracePeriodSeconds": 30,
            "volumes": [{"name": "corpus", "hostPath": {"path": "/corpus"}}],
            "containers": [
                {
                    "name": names.CONTAINER,
                    "resources": {"limits": {"memory": "4Gi"}},
                    "env": [{"name": "MINE", "value": "1"}, {"name": "HOME", "value": "/home"}],
                    "volumeMounts": [{"name": "corpus", "mountPath": "/corpus"}],
                },
                {"name": "sidecar", "image": "s:1"},
            ],
        },
    }
    pod = member(spec(template=template, nodes={"acceleratorResource": "nvidia.com/gpu", "procPerNode": 4}))
    assert [c["name"] for c in pod["spec"]["containers"]] == [names.CONTAINER, "sidecar"]
    snapshots = next(volume["emptyDir"] for volume in pod["spec"]["volumes"] if volume["name"] == "flash")["sizeLimit"]
    assert quantity.parse(trainer(pod)["resources"]["limits"]["memory"]) == 4 * 2**30 + quantity.parse(snapshots)
    assert trainer(pod)["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert environment(pod).items() >= {"MINE": "1", "HOME": "/home", names.ENV_GRACE_SECONDS: "25"}.items()
    assert len([e for e in trainer(pod)["env"] if e["name"] == "HOME"]) == 1
    assert {"tmp", "shm", "token", "corpus"} <= {volume["name"] for volume in pod["spec"]["volumes"]}
    assert {"/tmp", "/corpus"} <= {mount["mountPath"] for mount in trainer(pod)["volumeMounts"]}
    assert pod["spec"]["schedulingGates"] == [{"name": "kueue.x-k8s.io/topology"}]
    assert pod["spec"]["nodeSelector"] == {"pool": "gpu"}
    assert pod["metadata"]["labels"]["team"] == "x"
    kubernetes_validate.validate(pod, "1.36", strict=True)


def test_the_template_cannot_take_the_pods_identity() -> None:
    """Labels and names that the operator finds its pods by stay."""
    template = {"metadata": {"labels": {names.LABEL_JOB: "other"}}, "spec": {"hostname": "x"}}
    pod = member(spec(template=template))
    assert pod["metadata"]["labels"][names.LABEL_JOB] == "j"
    assert pod["spec"]["hostname"] == "j-2"


def test_an_image_of_the_users_gets_the_agent() -> None:
    """Copied by an init container from the operator's image, found by PYTHONPATH."""
    pod = member(spec(image="mine:1", entrypoint={"script": "train.py"}))
    (init,) = pod["spec"]["initContainers"]
    assert (init["image"], trainer(pod)["image"]) == ("operator:1", "mine:1")
    assert trainer(pod)["command"][0] == f"{manifests.AGENT_DIRECTORY}/catatonit"
    assert environment(pod)["PYTHONPATH"] == manifests.AGENT_DIRECTORY
    assert not member()["spec"]["initContainers"]


def test_a_member_that_comes_after_an_upgrade_is_like_those_that_run() -> None:
    """Workers of two versions in one round would wait for each other for ever; a job without pods gets the new one."""
    for job_spec, expected in (
        (spec(), ("old:1", [])),
        (spec(image="mine:1"), ("mine:1", ["old:1"])),
        (spec(image="old:1"), ("old:1", [])),
    ):
        others = [planner.pod(0, trainer="broken:1", phase="Pending"), planner.pod(1, trainer="old:1")]
        settings = manifests.like(SETTINGS, job_spec, others)
        made = manifests.member_pod(JOB, job_spec, 2, 3, settings)
        assert (trainer(made)["image"], [each["image"] for each in made["spec"]["initContainers"]]) == expected
        assert manifests.like(SETTINGS, job_spec, others[:1]) == SETTINGS


def test_claims_of_uris_are_mounted_once() -> None:
    """pvc:// URIs are volumes; two paths in one claim are one volume."""
    text = {"source": "pvc://team.models/text", "tokenizer": "pvc://tokenizers/bpe"}
    pod = member(spec(output="pvc://team.models/out", data=text))
    claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v]
    assert claims == ["team.models", "tokenizers"]
    assert "/llmtrain/volumes/team.models" in {mount["mountPath"] for mount in trainer(pod)["volumeMounts"]}


def test_torchrun_in_place_of_the_agent_needs_no_options() -> None:
    """A command of the user's own finds torchrun's options set; a script under our agent does not."""
    run = {"name": names.CONTAINER, "command": ["torchrun", "train.py"]}
    own = spec(
        entrypoint={"script": "train.py"},
        nodes={"min": 2, "max": 4, "procPerNode": 8},
        template={"spec": {"containers": [run]}},
    )
    assert trainer(member(own))["command"] == ["torchrun", "train.py"]
    given = {name: value for name, value in environment(member(own)).items() if name.startswith("PET_")}
    assert given == {
        "PET_RDZV_BACKEND": "llmtrain", "PET_RDZV_ID": "j", "PET_NNODES": "2:4", "PET_NPROC_PER_NODE": "8",
        "PET_MAX_RESTARTS": "10",
    }  # fmt: skip
    assert not any(name.startswith("PET_") for name in environment(member(spec(entrypoint={"script": "train.py"}))))


@pytest.mark.parametrize(
    "template",
    [
        pytest.param({"spec": {"terminationGracePeriodSeconds": "30"}}, id="grace-is-text"),
        pytest.param({"spec": {"volumes": ["data"]}}, id="volumes-without-names"),
        pytest.param({"spec": {"volumes": None}}, id="volumes-removed"),
        pytest.param({"spec": {"containers": [{"name": names.CONTAINER, "env": ["A=1"]}]}}, id="env-as-in-docker"),
        pytest.param({"metadata": {"labels": ["a"]}}, id="labels-are-a-list"),
        pytest.param({"metadata": {"labels": None}}, id="labels-removed"),
    ],
)
def test_an_odd_template_gives_an_odd_pod(template) -> None:
    """The API server refuses it in its own words, which the user gets to see."""
    assert member(spec(template=template))["metadata"]["labels"][names.LABEL_JOB] == "j"


S3 = {
    "endpoint": "https://minio.example:9000",
    "region": "eu-1",
    "credentials": {"secretName": "keys", "sessionTokenKey": "session"},
}


def test_the_trainer_alone_gets_the_settings_of_s3() -> None:
    """Credentials as references to the user's secret: the operator never sees them."""
    checkpoint = {"durable": {"storage": "s3://bucket/a"}, "s3": S3}
    sidecar = {"spec": {"containers": [{"name": "sidecar", "image": "s:1"}]}}
    pod = member(spec(checkpoint=checkpoint, image="mine:1", entrypoint={"script": "t.py"}, template=sidecar))
    assert environment(pod).items() >= {"AWS_ENDPOINT_URL": S3["endpoint"], "AWS_REGION": "eu-1"}.items()
    refs = {e["name"]: e["valueFrom"]["secretKeyRef"] for e in trainer(pod)["env"] if "secretKeyRef" in str(e)}
    assert refs == {
        "AWS_ACCESS_KEY_ID": {"name": "keys", "key": "AWS_ACCESS_KEY_ID"},
        "AWS_SECRET_ACCESS_KEY": {"name": "keys", "key": "AWS_SECRET_ACCESS_KEY"},
        "AWS_SESSION_TOKEN": {"name": "keys", "key": "session"},
    }
    others = [c for c in pod["spec"]["containers"] + pod["spec"]["initContainers"] if c["name"] != names.CONTAINER]
    assert len(others) == 2
    assert "AWS" not in json.dumps(others)
    kubernetes_validate.validate(pod, "1.36", strict=True)


def test_without_settings_s3_is_reached_by_workload_identity() -> None:
    """A service account of the user's own carries it; nothing here stands in its way."""
    template = {"spec": {"serviceAccountName": "trainer"}}
    pod = member(spec(checkpoint={"durable": {"storage": "s3://bucket/a"}}, template=template))
    assert pod["spec"]["serviceAccountName"] == "trainer"
    assert not any(e["name"].startswith("AWS") for e in trainer(pod)["env"])


def test_claims_of_checkpoints_are_mounted_too() -> None:
    checkpoint = {"durable": {"storage": "pvc://ckpt/a"}, "restoreFrom": "pvc://others/b"}
    pod = member(spec(checkpoint=checkpoint))
    assert {"/llmtrain/volumes/ckpt", "/llmtrain/volumes/others"} <= {
        m["mountPath"] for m in trainer(pod)["volumeMounts"]
    }
    assert environment(pod)[names.ENV_JOB_UID] == "job-uid"


METRICS = {"name": "metrics", "containerPort": 9402, "protocol": "TCP"}


def ports(template=None, **fields):
    """The trainer's ports of a pod with this template."""
    return trainer(member(spec(template={"spec": template or {}}, **fields))).get("ports")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ({}, [METRICS]),
        (
            {"containers": [{"name": "trainer", "ports": [{"name": "debug", "containerPort": 5678}]}]},
            [{"name": "debug", "containerPort": 5678}, METRICS],
        ),
        (
            {"containers": [{"name": "trainer", "ports": [{"name": "metrics", "containerPort": 8000}]}]},
            [{"name": "metrics", "containerPort": 8000}],
        ),
        (
            {"containers": [{"name": "trainer", "ports": [{"name": "mine", "containerPort": 9402}]}]},
            [{"name": "mine", "containerPort": 9402}],
        ),
        ({"hostNetwork": True}, None),
        ({"containers": [{"name": "trainer", "command": ["torchrun", "train.py"]}]}, None),
    ],
    ids=["plain", "beside-others", "name-is-taken", "number-is-taken", "nodes-network", "torchrun"],
)
def test_the_port_of_metrics_takes_nothing_from_the_user(template, expected) -> None:
    """Kubernetes refuses a name twice, and of a port that is named on a node's network a second pod."""
    assert ports(template) == expected


def test_members_of_one_machine_get_no_port_of_metrics() -> None:
    """They would all want the same one."""
    alone = dataclasses.replace(SETTINGS, metrics_port=0)
    pod = manifests.member_pod(JOB, spec(), 2, 3, alone)
    assert "ports" not in trainer(pod)
    assert names.ENV_METRICS_PORT not in environment(pod)
    assert environment(member())[names.ENV_METRICS_PORT] == "9402"
