"""The chart against a real API server: admission, what an uninstall leaves, and whether the rights suffice."""

import asyncio
import contextlib

import helm_python as helm
import pytest
import yaml

from llmtrain_operator.api import JobSpec
from llmtrain_operator.cluster.client import connect
from llmtrain_operator.cluster.cluster import Cluster
from llmtrain_operator.cluster.lease import Lease
from llmtrain_operator.cluster.resources import BY_KIND, JOBS, PODS, Resource
from llmtrain_operator.cluster.tokenreview import TokenReviewAuthenticator
from llmtrain_operator.contract import names
from llmtrain_operator.coordinator.auth import Unauthenticated
from llmtrain_operator.manifests import Settings, children, member_pod
from llmtrain_operator.ports import Conflict, Rejected
from llmtrain_operator.state import JobView
from tests.support.chart import CHART, CLUSTER_RIGHTS, LEASE_RIGHTS, RIGHTS, rights
from tests.support.policies import Network, Pod

_RBAC, _REVIEWS = "rbac.authorization.k8s.io/v1", "authorization.k8s.io/v1"
SECRETS = Resource("Secret", "v1", "secrets")
DEPLOYMENTS = Resource("Deployment", "apps/v1", "deployments")
CLUSTER_ROLES = Resource("ClusterRole", _RBAC, "clusterroles", namespaced=False)
ROLE_BINDINGS = Resource("RoleBinding", _RBAC, "rolebindings")
CRDS = Resource("CustomResourceDefinition", "apiextensions.k8s.io/v1", "customresourcedefinitions", namespaced=False)
RULES_REVIEWS = Resource("SelfSubjectRulesReview", _REVIEWS, "selfsubjectrulesreviews", namespaced=False)
ACCESS_REVIEWS = Resource("SubjectAccessReview", _REVIEWS, "subjectaccessreviews", namespaced=False)
GONE_WITH_THE_RELEASE = ("Service", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy")
VALUES = {"crds": {"install": False}}  # the session's API server has it already
SETTINGS = Settings("trainer:1", "operator:1", "wss://coordinator:7443", "CA", member_egress=())
SPEC = {"model": {"preset": "gpt-tiny"}, "data": {"source": "/data"}, "training": {"maxSteps": 1}}
GANG = JobSpec.model_validate(SPEC | {"scheduling": {"gang": "native"}})
BOTH_MODES = pytest.mark.parametrize("release", ["namespaced", "cluster-wide"], indirect=True)


@pytest.fixture
async def release(kubeconfig, namespace, request):
    """The chart installed under the namespace's name, so that tests' cluster-wide objects do not meet."""
    watched = [] if getattr(request, "param", "namespaced") == "cluster-wide" else [namespace]
    config = helm.Config(kubeconfig_path=kubeconfig, namespace=namespace)
    with config:
        await asyncio.to_thread(config.install, str(CHART), namespace, VALUES | {"watch": {"namespaces": watched}})
        yield config
        with contextlib.suppress(helm.HelmError):
            await asyncio.to_thread(config.uninstall, namespace)


async def test_an_upgrade_keeps_the_certificate_and_an_uninstall_leaves_that_and_the_kind(client, release, namespace):
    """Members trust that certificate's CA alone, and train on until an operator comes back."""
    secret = f"{namespace}-llmtrain-coordinator-tls"
    before = await client.request("get", SECRETS, namespace, secret)
    await asyncio.to_thread(release.upgrade, str(CHART), namespace, VALUES | {"logLevel": "debug"})
    after = await client.request("get", SECRETS, namespace, secret)
    assert after["data"] == before["data"]
    await asyncio.to_thread(release.uninstall, namespace)
    selector = {"labelSelector": f"app.kubernetes.io/instance={namespace}"}
    for resource in (DEPLOYMENTS, *(BY_KIND[kind] for kind in GONE_WITH_THE_RELEASE)):
        assert (await client.request("list", resource, namespace, query=selector))["items"] == []
    assert (await client.request("list", CLUSTER_ROLES, query=selector))["items"] == []
    assert (await client.request("get", SECRETS, namespace, secret))["data"] == before["data"]
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
    await client.request(
        "create", BY_KIND["ServiceAccount"], namespace, body=children(job, JobSpec.model_validate(SPEC), SETTINGS)[0]
    )
    member = member_pod(job, JobSpec.model_validate(SPEC), 0, 1, SETTINGS)
    await client.request("create", PODS, namespace, body=member, query={"dryRun": "All"})
    operator["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    with pytest.raises(Rejected, match="violates PodSecurity"):
        await client.request("create", PODS, namespace, body=operator, query={"dryRun": "All"})


class Calls(list[tuple[str, str]]):
    """Verb and resource of each request that was made, as the API server judges them."""

    def note(self, verb: str, resource: str, code: str) -> None:
        del code
        self.extend((each, resource) for each in (("create", "patch") if verb == "apply" else (verb,)))


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
async def as_operator(client, release, kubeconfig, namespace, tmp_path, calls):
    """A client with the token of the operator's own service account; it notes what it asks for in `calls`."""
    async with _as_account(client, kubeconfig, namespace, f"{namespace}-llmtrain", tmp_path, calls) as operator:
        yield operator


@contextlib.asynccontextmanager
async def _as_account(client, kubeconfig, namespace, name, tmp_path, calls):
    account = BY_KIND["ServiceAccount"]
    token = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}}
    answer = await client.request("create", account, namespace, name, subresource="token", body=token)
    config = yaml.safe_load(await asyncio.to_thread(kubeconfig.read_text))
    config["users"][0]["user"] = {"token": answer["status"]["token"]}
    path = tmp_path / f"{name}.kubeconfig"
    await asyncio.to_thread(path.write_text, yaml.safe_dump(config))
    async with connect(path, on_call=calls.note) as connected:
        yield connected


@BOTH_MODES
async def test_the_rights_are_those_that_the_operators_work_needs(client, as_operator, release, namespace, calls):
    """Every operation of the cluster port and token review succeed, and no right is left over that none of them used.

    Beyond the unit tier's table: that table is what the API server makes of all roles and bindings together.
    """
    watched = release.get_values(namespace)["watch"]["namespaces"]
    body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "a"}, "spec": SPEC}
    raw = await client.request("create", JOBS, namespace, body=body)
    job = JobView(name="a", namespace=namespace, uid=raw["metadata"]["uid"], generation=1)
    port = Cluster(as_operator, set[str]().add, watched)
    task = asyncio.create_task(port.run())
    await asyncio.wait_for(port.synced(), 20)
    await port.patch_status(raw, {"state": "Pending"})
    await port.patch_desired(port.job(job.key), 1)
    for child in children(job, GANG, SETTINGS, group_size=1):
        if child["kind"] in GONE_WITH_THE_RELEASE:
            await _apply_after_an_earlier_job(client, port, child, calls)
        await port.apply(child)
    member = member_pod(job, JobSpec.model_validate(SPEC), 0, 1, SETTINGS)
    await port.create(member)
    await port.create(member)  # found created: what a pass that failed half-way leaves
    [pod] = port.pods(job.key)
    await port.delete("Pod", namespace, pod.name, pod.uid, grace=0)
    for posted in ("create", "patch"):  # the same event again counts up the first
        port.post_event(raw, "Told", "with the operator's account")
        async with asyncio.timeout(20):
            while (posted, "events") not in calls:  # noqa: ASYNC110 - the poster works in the background
                await asyncio.sleep(0.02)
    await port.delete(names.KIND, namespace, "a", job.uid)
    with pytest.raises(Unauthenticated):
        await TokenReviewAuthenticator(as_operator).identify("not a token")
    task.cancel()
    await asyncio.wait([task])
    await _lead_for_a_moment(Lease(as_operator, namespace, f"{namespace}-llmtrain", "this test"))
    granted = {(verb, resource.partition("/")[0]) for (_, resource), verbs in _all_rights().items() for verb in verbs}
    # `get` of a job: a conflicting creation looks at what is there, whatever its kind. `update` of finalizers is what
    # admission asks of whoever sets blockOwnerDeletion.
    assert granted - set(calls) <= {("get", names.PLURAL), ("update", names.PLURAL)}


async def _apply_after_an_earlier_job(client, port, child, calls):
    """Have the operator remove what an earlier job left, before the garbage collector does."""
    resource, metadata = BY_KIND[child["kind"]], child["metadata"]
    [owner] = metadata["ownerReferences"]
    left = child | {
        "metadata": metadata | {"ownerReferences": [owner | {"uid": "11111111-2222-3333-4444-555555555555"}]}
    }
    async with asyncio.timeout(20):
        while ("delete", resource.plural) not in calls:
            with contextlib.suppress(Conflict):
                await client.request("create", resource, metadata["namespace"], body=left)
                await port.apply(child)
                await client.request("delete", resource, metadata["namespace"], metadata["name"])


async def _lead_for_a_moment(lease):
    led = asyncio.Event()

    async def lead():
        led.set()
        await asyncio.Event().wait()

    candidate = asyncio.create_task(lease.run(lead))
    await asyncio.wait_for(led.wait(), 20)
    candidate.cancel()
    await asyncio.wait([candidate])


def _all_rights():
    """In the release's own namespace, which is watched."""
    return RIGHTS | CLUSTER_RIGHTS | LEASE_RIGHTS


async def _rules(client, namespace):
    body = {"apiVersion": RULES_REVIEWS.api_version, "kind": RULES_REVIEWS.kind, "spec": {"namespace": namespace}}
    status = (await client.request("create", RULES_REVIEWS, body=body))["status"]
    assert not status["incomplete"]
    named = {name for rule in status["resourceRules"] for name in rule.get("resourceNames", ())}
    return _flat(rights({"rules": status["resourceRules"]})), named


def _flat(table):
    return {(key, verb) for key, verbs in table.items() for verb in verbs}


@BOTH_MODES
async def test_and_the_api_server_grants_nothing_else(
    client, as_operator, release, namespace, kubeconfig, tmp_path, calls
):
    """In a watched namespace exactly the table's rights; elsewhere, in namespaced mode, those without a namespace."""
    async with _as_account(client, kubeconfig, namespace, "default", tmp_path, calls) as nobody:
        everybodys = {where: (await _rules(nobody, where))[0] for where in (namespace, "kube-system")}
    granted, named = await _rules(as_operator, namespace)
    assert granted - everybodys[namespace] == _flat(_all_rights())
    assert named == {f"{namespace}-llmtrain"}, "the right to Leases is to one of them"
    granted, named = await _rules(as_operator, "kube-system")
    namespaced = release.get_values(namespace)["watch"]["namespaces"]
    assert granted - everybodys["kube-system"] == _flat(CLUSTER_RIGHTS if namespaced else RIGHTS | CLUSTER_RIGHTS)
    assert not named
    with pytest.raises(Rejected, match="forbidden"):
        await as_operator.request("list", SECRETS, namespace)


async def test_users_may_do_with_jobs_what_they_may_do_with_their_namespace(client, release, namespace):
    """The built-in roles edit and view extend to jobs, through what the controller manager aggregates."""
    for role in ("edit", "view"):
        binding = {
            "apiVersion": _RBAC,
            "kind": "RoleBinding",
            "metadata": {"name": role},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "name": f"{role}or", "apiGroup": "rbac.authorization.k8s.io"}],
        }
        await client.request("create", ROLE_BINDINGS, namespace, body=binding)

    async def may(user: str, verb: str, subresource: str = "") -> bool:
        asked = {"group": names.GROUP, "resource": names.PLURAL, "verb": verb, "namespace": namespace}
        spec = {"user": user, "resourceAttributes": asked | {"subresource": subresource}}
        body = {"apiVersion": _REVIEWS, "kind": "SubjectAccessReview", "spec": spec}
        return (await client.request("create", ACCESS_REVIEWS, body=body))["status"]["allowed"]

    async with asyncio.timeout(20):
        while not (await may("editor", "create") and await may("viewor", "list")):  # noqa: ASYNC110 - only it knows
            await asyncio.sleep(0.05)
    assert await may("editor", "patch", "scale")
    assert await may("editor", "delete")
    assert not await may("viewor", "create")
    assert not await may("viewor", "patch", "scale")
    assert not await may("editor", "patch", "status")


async def test_the_policies_that_the_server_holds_let_jobs_train_and_nobody_in(client, as_operator, release, namespace):
    """The chart's policy and a job's as the API server gives them back, its defaults filled in."""
    body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "a"}, "spec": SPEC}
    raw = await client.request("create", JOBS, namespace, body=body)
    job = JobView(name="a", namespace=namespace, uid=raw["metadata"]["uid"], generation=1)
    deployment = await client.request("get", DEPLOYMENTS, namespace, f"{namespace}-llmtrain")
    template = deployment["spec"]["template"]
    [rules] = [
        flag.partition("=")[2]
        for flag in template["spec"]["containers"][0]["command"]
        if flag.startswith("--member-egress=")
    ]
    settings = Settings("t", "o", "wss://c", "CA", member_egress=tuple(yaml.safe_load(rules)))
    spec = JobSpec.model_validate(SPEC)
    port = Cluster(as_operator, set[str]().add, [namespace])
    for child in children(job, spec, settings):
        await port.apply(child)
    held = (await client.request("list", BY_KIND["NetworkPolicy"], namespace))["items"]
    assert {policy["metadata"]["name"] for policy in held} == {"a", f"{namespace}-llmtrain"}
    namespaces = (await client.request("list", BY_KIND["Namespace"]))["items"]
    network = Network(tuple(held), {n["metadata"]["name"]: n["metadata"]["labels"] for n in namespaces})
    one, other = (Pod.of(member_pod(job, spec, index, 1, settings)) for index in (0, 1))
    operator = Pod(namespace, template["metadata"]["labels"])
    stranger = Pod("default", {"app": "web"})
    assert not network.refusal(one, other, 29500)
    assert not network.refusal(one, operator, 7443)
    assert not network.refusal(one, Pod("kube-system", {"k8s-app": "kube-dns"}), 53, "UDP")
    assert not network.refusal(operator, "192.0.2.1", 6443)
    assert network.refusal(stranger, one, 29500) == "Ingress of a"
    assert network.refusal(stranger, operator, 7443) == f"Ingress of {namespace}-llmtrain"
    assert network.refusal(one, "198.51.100.7", 443) == "Egress of a"
