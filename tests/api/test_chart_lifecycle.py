"""The chart over its life on an API server of its own: install, upgrade of the CRD, rollback, uninstall, and again."""

import asyncio
import contextlib
import shutil
from pathlib import Path

import helm_python as helm
import pytest
import yaml

from devcluster.pytest_plugin import session_cluster
from llmtrain_operator.cluster.client import NotFound, connect
from llmtrain_operator.cluster.resources import BY_KIND, JOBS, Resource
from llmtrain_operator.contract import names
from llmtrain_operator.ports import Rejected
from tests.support.chart import CHART

CRDS = Resource("CustomResourceDefinition", "apiextensions.k8s.io/v1", "customresourcedefinitions", namespaced=False)
CRD = f"{names.PLURAL}.{names.GROUP}"
SPEC = {"model": {"preset": "gpt-tiny"}, "data": {"source": "/data"}, "training": {"maxSteps": 1}}
QUEUED = SPEC | {"scheduling": {"queue": "research"}}
RELEASE, SYSTEM = "llmtrain", "llmtrain-system"


@pytest.fixture(scope="module")
def kubeconfig():
    """Of an API server that has never heard of us."""
    with session_cluster("chart-tests", nodes=0) as cluster:
        yield cluster.kubeconfig


@pytest.fixture
async def client(kubeconfig):
    async with connect(kubeconfig) as client:
        yield client


@pytest.fixture
def config(kubeconfig):
    with helm.Config(kubeconfig_path=kubeconfig, namespace=SYSTEM) as config:
        yield config


@pytest.fixture
def older(tmp_path) -> Path:
    """The chart as it might have been before spec.scheduling."""
    chart = tmp_path / "llmtrain"
    shutil.copytree(CHART, chart)
    path = chart / "files" / "llmtrainjobs.yaml"
    crd = yaml.safe_load(path.read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    del schema["properties"]["spec"]["properties"]["scheduling"]
    rules = schema["x-kubernetes-validations"]
    schema["x-kubernetes-validations"] = [rule for rule in rules if "scheduling" not in rule["rule"]]
    path.write_text(yaml.safe_dump(crd, sort_keys=False))
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump(about | {"version": "0.0.9", "appVersion": "0.0.9"}))
    return chart


async def _create(client, name, spec, **query):
    body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": name}, "spec": spec}
    async with asyncio.timeout(20):  # the kind is served a moment after its definition is there
        while True:
            try:
                return await client.request("create", JOBS, "default", body=body, query=query)
            except Rejected as error:
                if "404" not in str(error):
                    raise
            await asyncio.sleep(0.05)


async def _knows_queues(client) -> bool:
    crd = await client.request("get", CRDS, name=CRD)
    return "scheduling" in crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]


async def _queue(client, name) -> str:
    spec = (await client.request("get", JOBS, "default", name))["spec"]
    return spec.get("scheduling", {}).get("queue", "")


async def _remove_crd(client) -> None:
    with contextlib.suppress(NotFound):
        async with asyncio.timeout(20):
            await client.request("delete", CRDS, name=CRD)
            while True:
                await client.request("get", CRDS, name=CRD)
                await asyncio.sleep(0.05)


async def _until_served(client, name, queue) -> None:
    """Return when the API server serves jobs by the schema in which `name` has that queue."""
    async with asyncio.timeout(20):
        while await _queue(client, name) != queue:  # noqa: ASYNC110 - only the server knows
            await asyncio.sleep(0.05)


async def test_from_an_older_chart_to_this_one_and_back_and_away_and_again(client, config, older):
    """Each step changes the schema as it should, and no job is lost on the way."""
    do = asyncio.to_thread
    await do(config.install, str(older), RELEASE, {}, create_namespace=True)
    uids = {"old": (await _create(client, "old", SPEC))["metadata"]["uid"]}
    ignored = await _create(client, "ignored", QUEUED)
    assert "scheduling" not in ignored["spec"], "the older schema knows queues already: the test shows nothing"

    await do(config.upgrade, str(CHART), RELEASE, {})
    assert await _knows_queues(client)
    async with asyncio.timeout(20):  # it serves by the new schema a moment after it has it
        while "scheduling" not in (await _create(client, "probe", QUEUED, dryRun="All"))["spec"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    for name in ("touched", "untouched"):
        uids[name] = (await _create(client, name, QUEUED))["metadata"]["uid"]
    assert await _queue(client, "touched") == "research"

    await do(config.rollback, RELEASE)
    assert not await _knows_queues(client)
    await _until_served(client, "touched", "")
    status = {"status": {"state": "Pending"}}  # as the older operator writes it
    await client.request("patch", JOBS, "default", "touched", subresource="status", body=status)

    await do(config.upgrade, str(CHART), RELEASE, {})
    await _until_served(client, "untouched", "research")
    assert await _queue(client, "touched") == "", "docs/install.md says that a write under the older schema drops it"

    await do(config.uninstall, RELEASE)
    assert await _knows_queues(client)
    await do(config.install, str(CHART), RELEASE, {})
    await do(config.upgrade, str(CHART), RELEASE, {"crds": {"install": False}})
    assert await _knows_queues(client), "switching the CRD off takes it out of the chart's hands and away from nobody"
    listed = (await client.request("list", JOBS, "default"))["items"]
    assert {job["metadata"]["name"]: job["metadata"]["uid"] for job in listed}.items() >= uids.items()
    await do(config.uninstall, RELEASE)


async def test_from_a_chart_that_kept_the_crd_apart(client, config, tmp_path):
    """As the first one did, in crds/: Helm marks nothing there as its own, so the CRD has to be handed over once."""
    do = asyncio.to_thread
    chart = tmp_path / "llmtrain"
    shutil.copytree(CHART, chart)
    (chart / "crds").mkdir()
    (chart / "files" / "llmtrainjobs.yaml").rename(chart / "crds" / "llmtrainjobs.yaml")
    (chart / "templates" / "crd.yaml").unlink()
    await _remove_crd(client)
    await do(config.install, str(chart), RELEASE, {}, create_namespace=True)
    uid = (await _create(client, "first", SPEC))["metadata"]["uid"]
    with pytest.raises(helm.HelmError, match="invalid ownership metadata"):
        await do(config.upgrade, str(CHART), RELEASE, {})
    marks = {"meta.helm.sh/release-name": RELEASE, "meta.helm.sh/release-namespace": SYSTEM}
    metadata = {"labels": {"app.kubernetes.io/managed-by": "Helm"}, "annotations": marks}
    await client.request("patch", CRDS, name=CRD, body={"metadata": metadata})  # as helm upgrade --take-ownership does
    await do(config.upgrade, str(CHART), RELEASE, {})
    await do(config.rollback, RELEASE, version=1)
    assert (await client.request("get", JOBS, "default", "first"))["metadata"]["uid"] == uid, (
        "the CRD went, jobs and all"
    )
    await do(config.uninstall, RELEASE)


async def test_a_definition_of_someone_elses_is_left_alone_until_it_is_handed_over(client, config):
    """A second release in the cluster, or a CRD that kubectl applied: Helm says whose it is, the docs what to do."""
    do = asyncio.to_thread
    held = await client.request("get", CRDS, name=CRD)
    marks = {"meta.helm.sh/release-name": "other", "meta.helm.sh/release-namespace": "elsewhere"}
    await client.request("patch", CRDS, name=CRD, body={"metadata": {"annotations": marks}})
    with pytest.raises(helm.HelmError, match=f'"{CRD}".*release-name'):
        await do(config.install, str(CHART), "second", {})
    assert held["spec"] == (await client.request("get", CRDS, name=CRD))["spec"]
    await do(config.install, str(CHART), "second", {"crds": {"install": False}})
    await do(config.uninstall, "second")
    marks = {"meta.helm.sh/release-name": "second", "meta.helm.sh/release-namespace": SYSTEM}
    await client.request("patch", CRDS, name=CRD, body={"metadata": {"annotations": marks}})
    await do(config.install, str(CHART), "second", {})
    await do(config.uninstall, "second")


async def test_a_release_that_is_installed_again_has_the_certificate_that_members_trust(client, config):
    """Members of jobs that trained on meanwhile accept no other CA."""
    do, secrets = asyncio.to_thread, Resource("Secret", "v1", "secrets")
    crds = {"crds": {"install": False}}
    await do(config.install, str(CHART), RELEASE, crds, create_namespace=True)
    first = await client.request("get", secrets, SYSTEM, f"{RELEASE}-coordinator-tls")
    await do(config.uninstall, RELEASE)
    assert not (
        await client.request(
            "list", BY_KIND["ServiceAccount"], SYSTEM, query={"labelSelector": "app.kubernetes.io/instance=llmtrain"}
        )
    )["items"]
    await do(config.install, str(CHART), RELEASE, crds)
    second = await client.request("get", secrets, SYSTEM, f"{RELEASE}-coordinator-tls")
    assert second["data"] == first["data"]
    await do(config.uninstall, RELEASE)
