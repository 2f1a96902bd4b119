"""A real API server with the CRD in it, a client, and a namespace per test."""

import asyncio
import time
import uuid
from pathlib import Path

import pytest
import yaml

from devcluster.cluster import Cluster
from llmtrain_operator.cluster.client import NotFound, connect
from llmtrain_operator.cluster.resources import BY_KIND
from llmtrain_operator.contract import names

ROOT = Path(__file__).parents[2]
CRD_PATH = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{names.PLURAL}.{names.GROUP}"


@pytest.fixture(scope="session")
def kubeconfig(control_plane: Cluster) -> Path:
    """Administrator's kubeconfig of a cluster whose API server serves `LLMTrainJob`."""
    crd = yaml.safe_load((ROOT / "crds" / "llmtrainjobs.yaml").read_text())
    control_plane.api.create(CRD_PATH.rpartition("/")[0], crd)
    deadline = time.monotonic() + 20
    while not _established(control_plane.api.get(CRD_PATH)):
        assert time.monotonic() < deadline, "the API server does not establish the CRD"
        time.sleep(0.05)
    return control_plane.kubeconfig


def _established(crd: dict) -> bool:
    conditions = {c["type"]: c["status"] for c in crd.get("status", {}).get("conditions") or []}
    return conditions.get("Established") == "True"


@pytest.fixture
async def client(kubeconfig):
    async with connect(kubeconfig) as client:
        yield client


@pytest.fixture
async def namespace(client):
    """A new namespace in which pods can be created."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    await client.request("create", BY_KIND["Namespace"], body=body)
    async with asyncio.timeout(20):
        while not await _has_account(client, name):  # noqa: ASYNC110 - only the server knows
            await asyncio.sleep(0.02)
    yield name
    await client.request("delete", BY_KIND["Namespace"], name=name)


async def _has_account(client, namespace) -> bool:
    try:
        await client.request("get", BY_KIND["ServiceAccount"], namespace, "default")
    except NotFound:
        return False
    return True
