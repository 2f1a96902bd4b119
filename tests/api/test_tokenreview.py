"""Agents' tokens against a real API server."""

import pytest

from llmtrain_operator.cluster.resources import BY_KIND, PODS
from llmtrain_operator.cluster.tokenreview import TokenReviewAuthenticator
from llmtrain_operator.contract import names
from llmtrain_operator.coordinator.auth import Identity, Unauthenticated


async def token(client, namespace, pod, audience=names.TOKEN_AUDIENCE):
    """A token of the default service account as the kubelet would project it, bound to `pod`."""
    bound = {"kind": "Pod", "apiVersion": "v1", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
    request = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"audiences": [audience], "boundObjectRef": bound},
    }
    answer = await client.request(
        "create", BY_KIND["ServiceAccount"], namespace, "default", subresource="token", body=request
    )
    return answer["status"]["token"]


@pytest.fixture
async def pod(client, namespace):
    container = {"name": names.CONTAINER, "image": "none"}
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "job-0-0"},
        "spec": {"containers": [container], "schedulingGates": [{"name": "example.com/never"}]},
    }
    return await client.request("create", PODS, namespace, body=body)


async def test_a_pods_projected_token_proves_its_name_and_uid(client, namespace, pod):
    """Namespace, pod and UID come from the API server's word, not the agent's."""
    identity = await TokenReviewAuthenticator(client).identify(await token(client, namespace, pod))
    assert identity == Identity(namespace, "job-0-0", pod["metadata"]["uid"])


async def test_other_tokens_prove_nothing(client, namespace, pod):
    """A token for another audience, of a deleted pod, or made up is refused."""
    authenticator = TokenReviewAuthenticator(client)
    with pytest.raises(Unauthenticated):
        await authenticator.identify(await token(client, namespace, pod, "https://example.com"))
    with pytest.raises(Unauthenticated):
        await authenticator.identify("made.up.token")
    good = await token(client, namespace, pod)
    await client.request("delete", PODS, namespace, "job-0-0", body={"gracePeriodSeconds": 0})
    with pytest.raises(Unauthenticated):
        await authenticator.identify(good)
