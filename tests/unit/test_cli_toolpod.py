"""The pod that works on a job's checkpoints where they are."""

from __future__ import annotations

import click
import kubernetes_validate
import pytest

from llmtrain_operator.api.validation import parse
from llmtrain_operator.cli.checkpoints import path_in_pod
from llmtrain_operator.cli.toolpod import Tool, exit_code, image_of, tool_pod, trouble_of
from llmtrain_operator.contract import names
from llmtrain_operator.state import JobView
from tests.support.specs import job

VIEW = JobView("j", "ns", "job-uid", 1)
S3 = {"endpoint": "https://s3.example", "credentials": {"secretName": "keys"}}
TEMPLATE = {
    "metadata": {"labels": {"kueue.x-k8s.io/queue-name": "q"}},
    "spec": {
        "serviceAccountName": "mine",
        "schedulingGates": [{"name": "held"}],
        "tolerations": [{"key": "gpu"}],
        "containers": [
            {"name": "sidecar", "image": "other"},
            {
                "name": names.CONTAINER,
                "resources": {"limits": {"memory": "256Gi"}},
                "env": [{"name": "A", "value": "1"}],
            },
        ],
    },
}


def made(**patch):
    spec = parse("j", job("j", patch)["spec"])[0]
    return spec, tool_pod(VIEW, spec, "abc", Tool("trainer:1", ["ls", "URI"], pull_secrets=("pull",)))


def test_it_has_what_members_have_to_reach_the_storage():
    """Claims, service account, S3 settings by reference, tolerations; and the API server would take it."""
    storage = {"durable": {"storage": "s3://b/x"}, "restoreFrom": "pvc://old/x", "s3": S3}
    _, pod = made(checkpoint=storage, template=TEMPLATE)
    kubernetes_validate.validate(pod, "1.34", strict=True)
    container = pod["spec"]["containers"][0]
    env = {each["name"]: each for each in container["env"]}
    assert env["AWS_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"]["name"] == "keys"
    assert (env["AWS_ENDPOINT_URL"]["value"], env["A"]["value"]) == ("https://s3.example", "1")
    assert {"name": "claim-old", "mountPath": "/llmtrain/volumes/old"} in container["volumeMounts"]
    assert (pod["spec"]["serviceAccountName"], pod["spec"]["tolerations"]) == ("mine", [{"key": "gpu"}])
    assert pod["spec"]["imagePullSecrets"] == [{"name": "pull"}]
    assert container["command"][-3:] == ["llmtrain_trainer.checkpoint", "ls", "URI"]


def test_it_is_no_member():
    """Neither the operator nor a queue, a gang or the job's Service may take it for one; it takes no accelerator."""
    _, pod = made(
        nodes={"acceleratorResource": "nvidia.com/gpu"}, scheduling={"gang": "volcano", "queue": "q"}, template=TEMPLATE
    )
    assert names.LABEL_JOB not in pod["metadata"]["labels"]
    assert not {"kueue.x-k8s.io/queue-name"} & pod["metadata"]["labels"].keys()
    assert not {"schedulingGates", "schedulerName", "schedulingGroup", "hostname", "affinity"} & pod["spec"].keys()
    [container] = pod["spec"]["containers"]
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "4Gi"}
    assert not [each for each in container["env"] if each["name"].startswith("LLMTRAIN_")]
    assert "controller" not in pod["metadata"]["ownerReferences"][0]


POD = {"spec": {"containers": [{"name": "side", "image": "s"}, {"name": names.CONTAINER, "image": "members:2"}]}}
OPERATOR = {"command": ["llmtrain-operator", "--trainer-image=operators:3", "--http-port=1"]}
DEPLOYMENT = {"spec": {"template": {"spec": {"containers": [{"command": ["x"]}, OPERATOR]}}}}


@pytest.mark.parametrize(
    ("own", "pods", "deployments", "image"),
    [
        pytest.param(None, [POD], [DEPLOYMENT], "members:2", id="the members'"),
        pytest.param("users:1", [POD], [DEPLOYMENT], "operators:3", id="not the user's own"),
        pytest.param(None, [], [DEPLOYMENT], "operators:3", id="no member left"),
        pytest.param(None, [], [], None, id="unknown"),
    ],
)
def test_the_image_is_one_that_has_the_tool(own, pods, deployments, image):
    """As far as it can be seen."""
    assert image_of(made(image=own)[0], pods, deployments) == image


def status(**state):
    return {"status": {"containerStatuses": [{"name": names.CONTAINER, "state": state}]}}


def test_what_the_kubelet_says_is_told_on():
    """A pod that cannot start is not waited for; the tool's exit code is the command's."""
    assert "no such image" in trouble_of(status(waiting={"reason": "ErrImagePull", "message": "no such image"}))
    assert trouble_of(status(waiting={"reason": "ContainerCreating"})) is None
    assert (exit_code(status(terminated={"exitCode": 1})), exit_code(status(running={}))) == (1, None)


@pytest.mark.parametrize(
    ("place", "path"), [("pvc://models/a b", "/llmtrain/volumes/models/a b"), ("/tmp/x", None), ("s3://b/x", None)]
)
def test_a_model_is_exported_onto_a_claim(place, path):
    """What is written elsewhere would be gone with the pod."""
    if path:
        assert path_in_pod(place) == path
    else:
        with pytest.raises(click.UsageError, match="pvc://claim/path"):
            path_in_pod(place)
