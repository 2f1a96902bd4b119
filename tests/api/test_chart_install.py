"""The chart against a real API server: admission, upgrade, uninstall, and whether the rights suffice."""

import asyncio
import contextlib
from pathlib import Path

import helm_python as helm
import pytest
import yaml

from llmtrain_operator.api import JobSpec
from llmtrain_operator.cluster.client import connect
from llmtrain_operator.cluster.cluster import Cluster
from llmtrain_operator.cluster.resources import BY_KIND, JOBS, PODS, Resource
from llmtrain_operator.cluster.tokenreview import TokenReviewAuthenticator
from llmtrain_operator.contract import names
from llmtrain_operator.coordinator.auth import Unauthenticated
from llmtrain_operator.manifests import Settings, children, member_pod
from llmtrain_operator.ports import Rejected
from llmtrain_operator.state import JobView

CHART = Path(__file__).parents[2] / "charts" / "llmtrain"
SECRETS = Resource("Secret", "v1", "secrets")
DEPLOYMENTS = Resource("Deployment", "apps/v1", "deployments")
CLUSTER_ROLES = Resource("ClusterRole", "rbac.authorization.k8s.io/v1", "clusterroles", namespaced=False)
CRDS = Resource("CustomResourceDefinition", "apiextensions.k8s.io/v1", "customresourcedefinitions", namespaced=False)
VALUES = {"crds": {"install": False}}  # the session's API server has it already
SETTINGS = Settings("trainer:1", "operator:1", "wss://coordinator:7443", "CA")
SPEC = {"model": {"preset": "gpt-tiny"}, "data": {"source": "/data"}, "training": {"maxSteps": 1}}


@pytest.fixture
async def release(kubeconfig, namespace):
    """The chart installed under the namespace's name, so that tests' cluster-wide objects do not meet."""
    config = helm.Config(kubeconfig_path=kubeconfig, namespace=namespace)
    with config:
        await asyncio.to_thread(config.install, str(CHART), namespace, VALUES | {"watch": {"namespaces": [namespace]}})
        yield config
        with contextlib.suppress(helm.HelmError):
            await asyncio.to_thread(config.uninstall, namespace)


async def test_an_upgrade_keeps_the_certificate_and_an_uninstall_leaves_only_the_kind(client, release, namespace):
    secret = f"{namespace}-llmtrain-coordinator-tls"
    before = await client.request("get", SECRETS, namespace, secret)
    await asyncio.to_thread(release.upgrade, str(CHART), namespace, VALUES | {"logLevel": "debug"})
    after = await client.request("get", SECRETS, namespace, secret)
    assert after["data"] == before["data"]
    await asyncio.to_thread(release.uninstall, namespace)
    selector = {"labelSelector": f"app.kubernetes.io/instance={namespace}"}
    for resource in (SECRETS, DEPLOYMENTS, BY_KIND["Service"], BY_KIND["ServiceAccount"]):
        assert (await client.request("list", resource, namespace, query=selector))["items"] == []
    assert (await client.request("list", CLUSTER_ROLES, query=selector))["items"] == []
    assert await client.request("get", CRDS, name=f"{names.PLURAL}.{names.GROUP}")


async def test_its_pods_and_members_pass_pod_security_restricted(client, release, namespace):
    """In a namespace that enforces `restricted`, the operator's pod and a default member are admitted."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    await client.request("patch", BY_KIND["Namespace"], name=namespace, body={"metadata": {"labels": labels}})
    deployment = await client.request("get", DEPLOYMENTS, namespace, f"{namespace}-llmtrain")
    operator = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe"},
        "spec": deployment["spec"]["template"]["spec"],
    }
    await client.request("create", PODS, namespace, body=operator, query={"dryRun": "All"})
    job = JobView(name="a", namespace=namespace, uid="11111111-2222-3333-4444-555555555555", generation=1)
    await client.request("create", BY_KIND["ServiceAccount"], namespace, body=children(job, JobSpec.model_validate(SPEC), SETTINGS)[0])
    member = member_pod(job, JobSpec.model_validate(SPEC), 0, 1, SETTINGS)
    await client.request("create", PODS, namespace, body=member, query={"dryRun": "All"})
    operator["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    with pytest.raises(Rejected, match="violates PodSecurity"):
        await client.request("create", PODS, namespace, body=operator, query={"dryRun": "All"})


@pytest.fixture
async def as_operator(client, release, kubeconfig, namespace, tmp_path):
    """A client with the token of the operator's own service account."""
    account = BY_KIND["ServiceAccount"]
    token = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}}
    answer = await client.request(
        "create", account, namespace, f"{namespace}-llmtrain", subresource="token", body=token
    )
    config = yaml.safe_load(await asyncio.to_thread(kubeconfig.read_text))
    config["users"][0]["user"] = {"token": answer["status"]["token"]}
    path = tmp_path / "operator.kubeconfig"
    await asyncio.to_thread(path.write_text, yaml.safe_dump(config))
    async with connect(path) as operator:
        yield operator


async def test_the_operators_rights_suffice_for_all_it_does(client, as_operator, namespace):
    """Every operation of the cluster port, and token review, with the account that the chart made."""
    body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "a"}, "spec": SPEC}
    raw = await client.request("create", JOBS, namespace, body=body)
    metadata = raw["metadata"]
    job = JobView(name="a", namespace=namespace, uid=metadata["uid"], generation=1)
    port = Cluster(as_operator, set[str]().add, [namespace])
    task = asyncio.create_task(port.run())
    await asyncio.wait_for(port.synced(), 20)
    await port.patch_status(raw, {"state": "Pending"})
    await port.patch_desired(port.job(job.key), 1)
    for child in children(job, JobSpec.model_validate(SPEC), SETTINGS):
        await port.apply(child)
    await port.create(member_pod(job, JobSpec.model_validate(SPEC), 0, 1, SETTINGS))
    [pod] = port.pods(job.key)
    await port.delete("Pod", namespace, pod.name, pod.uid, grace=0)
    told = asyncio.Event()
    port._events._client.request, post = _noticing(as_operator.request, told), as_operator.request
    port.post_event(raw, "Told", "with the operator's account")
    await asyncio.wait_for(told.wait(), 20)
    as_operator.request = post
    await port.delete(names.KIND, namespace, "a", job.uid)
    with pytest.raises(Unauthenticated):
        await TokenReviewAuthenticator(as_operator).identify("not a token")
    task.cancel()
    await asyncio.wait([task])


def _noticing(request, told):
    async def noticed(*args, **kwargs):
        answer = await request(*args, **kwargs)
        told.set()
        return answer

    return noticed


@pytest.mark.parametrize(
    ("verb", "resource", "where"),
    [("list", SECRETS, True), ("list", PODS, False), ("list", JOBS, False), ("list", DEPLOYMENTS, True)],
    ids=["secrets", "pods-elsewhere", "jobs-elsewhere", "deployments"],
)
async def test_and_for_nothing_else(as_operator, namespace, verb, resource, where):
    with pytest.raises(Rejected, match="forbidden"):
        await as_operator.request(verb, resource, namespace if where else "default")
