"""A secret's way into a pod, and no further."""

from __future__ import annotations

import json

from devcluster.chaos import SYSTEM
from devcluster.cluster import Cluster
from tests.support.jobs import job
from tests.support.kube import Kubectl

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfi"
SCRIPT = """
import os, subprocess
seen = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
print("endpoint", seen["AWS_ENDPOINT_URL"], "region", seen["AWS_REGION"], "id", seen["AWS_ACCESS_KEY_ID"], flush=True)
subprocess.run(["printenv", "AWS_SECRET_ACCESS_KEY"])
raise RuntimeError("the server does not know " + seen["AWS_SECRET_ACCESS_KEY"])
"""


def test_credentials_reach_the_trainer_and_nobody_reads_them_from_it(kubectl: Kubectl, installed: Cluster) -> None:
    """A script that prints and raises them: neither log, status nor events have them."""
    keys = {"key-id": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": SECRET}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": keys}
    code = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "code"}, "data": {"s.py": SCRIPT}}
    credentials = {"secretName": "keys", "accessKeyIdKey": "key-id"}
    theirs = job(
        members=1,
        entrypoint={"script": "/code/s.py"},
        checkpoint={
            "durable": {"storage": "s3://bucket/a"},
            "s3": {"endpoint": "http://10.250.0.1:1", "region": "eu-1", "credentials": credentials},
        },
        recovery={"maxRestarts": 0},
        template={
            "spec": {
                "volumes": [{"name": "code", "configMap": {"name": "code"}}],
                "containers": [{"name": "trainer", "volumeMounts": [{"name": "code", "mountPath": "/code"}]}],
            }
        },
    )
    kubectl.apply(secret, code, theirs)
    kubectl.wait("ltj/j", "condition=Failed")
    log = kubectl("logs", "-l", "llmtrain.io/job=j", "--all-containers", "--tail=-1")
    assert "endpoint http://10.250.0.1:1 region eu-1 id AKIAEXAMPLE" in log
    assert "[rank 0] <AWS_SECRET_ACCESS_KEY redacted>\n" in log
    failure = kubectl.job("j")["lastFailure"]
    assert "RuntimeError: the server does not know <AWS_SECRET_ACCESS_KEY redacted>" in failure["traceback"]
    events = json.dumps(kubectl.items("event"))
    system = Kubectl(installed.kubectl, installed.kubeconfig, SYSTEM)
    operator = system("logs", "-l", "app.kubernetes.io/name=llmtrain", "--all-containers", "--tail=-1")
    everything = (log, json.dumps(kubectl.get("ltj", "j")), events, json.dumps(kubectl.items("pod")), operator)
    assert not any(SECRET in text for text in everything)
