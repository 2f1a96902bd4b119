"""Who may talk to whom with the chart's policies and the jobs' own, judged by what NetworkPolicy means."""

from __future__ import annotations

import dataclasses

import kubernetes_validate
import pytest
from click.testing import CliRunner

from llmtrain_operator import main, manifests
from llmtrain_operator.api import JobSpec
from llmtrain_operator.network import storage_rules
from llmtrain_operator.state import JobView
from tests.support import policies
from tests.support.chart import containers, find, render

INTERNET, S3, NODE_DNS = "198.51.100.7", "192.0.2.20", "169.254.20.10"
BASE = {"model": {"preset": "gpt-tiny"}, "data": {"source": "/data"}, "training": {"maxSteps": 1}}
STORAGE = "s3://bucket/run"
KEYS = {"credentials": {"secretName": "keys"}}


def spec(**checkpoint) -> JobSpec:
    return JobSpec.model_validate(BASE | ({"checkpoint": checkpoint} if checkpoint else {}))


def on_s3(**s3) -> JobSpec:
    return spec(durable={"storage": STORAGE}, **({"s3": s3} if s3 else {}))


class World:
    """The chart with these values, two jobs in `ns`, one in `elsewhere`, and what else a cluster has."""

    def __init__(self, values: dict, job: JobSpec) -> None:
        objects = render(values)
        command = containers(objects)["operator"]["command"]
        [rules] = [flag.partition("=")[2] for flag in command if flag.startswith("--member-egress=")]
        granted = main._rules(None, None, rules)
        settings = manifests.Settings("t", "o", "wss://c", "CA", member_egress=granted)
        readers = [flag.partition("=")[2] for flag in command if flag.startswith("--metrics-from=")]
        peers = main._rules(None, None, readers[0]) if readers else ()
        settings = dataclasses.replace(settings, metrics_from=peers)
        found = [find(objects, "NetworkPolicy")]
        self.members = {}
        for namespace, name in (("ns", "j"), ("ns", "k"), ("elsewhere", "j")):
            view = JobView(name, namespace, f"uid-{namespace}-{name}", 1)
            found += [o for o in manifests.children(view, job, settings) if o["kind"] == "NetworkPolicy"]
            self.members[namespace, name] = [
                policies.Pod.of(manifests.member_pod(view, job, index, 1, settings)) for index in (0, 1)
            ]
        for policy in found:
            kubernetes_validate.validate(policy, "1.36", strict=True)
        template = find(objects, "Deployment")["spec"]["template"]
        self.operator = policies.Pod.of({**template, "metadata": {**template["metadata"], "namespace": "ops"}})
        self.member, self.sibling = self.members["ns", "j"]
        self.stranger = policies.Pod("ns", {"app": "web"})
        self.prometheus = policies.Pod("monitoring", {"app": "prometheus"})
        self.dns = policies.Pod("kube-system", {"k8s-app": "kube-dns"})
        names = ("ns", "elsewhere", "ops", "monitoring", "kube-system")
        self.network = policies.Network(tuple(found), {name: {"kubernetes.io/metadata.name": name} for name in names})
        self.refusal = self.network.refusal


METRICS = {
    "networkPolicy": {
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    }
}


def test_what_has_to_pass_passes() -> None:
    """Every connection that a job makes, from rendezvous to storage."""
    world = World(METRICS, on_s3(endpoint=f"http://{S3}:9000", **KEYS))
    assert not world.refusal(world.member, world.sibling, 29500), "TCPStore"
    assert not world.refusal(world.member, world.sibling, 41234), "gloo and NCCL choose ports as they like"
    assert not world.refusal(world.member, world.operator, 7443), "coordinator"
    assert not world.refusal(world.members["elsewhere", "j"][0], world.operator, 7443), "jobs of all namespaces"
    assert not world.refusal(world.member, world.dns, 53, "UDP")
    assert not world.refusal(world.member, world.dns, 53, "TCP")
    assert not world.refusal(world.member, NODE_DNS, 53, "UDP")
    assert not world.refusal(world.member, S3, 9000)
    assert not world.refusal(world.operator, "192.0.2.1", 6443), "the API server itself"
    assert not world.refusal(world.operator, "10.96.0.1", 443), "the API server's Service"
    for port in (8080, 8081):
        assert not world.refusal(world.prometheus, world.operator, port), "metrics of operator and coordinator"
    assert not world.refusal(world.prometheus, world.member, 9402), "a member's metrics"
    assert world.refusal(world.prometheus, world.member, 29500) == "Ingress of j", "and nothing else of its"
    assert world.refusal(world.stranger, world.member, 9402) == "Ingress of j"


def test_what_must_not_pass_does_not() -> None:
    """Strangers reach no member, members reach no strangers."""
    world = World({}, on_s3(endpoint=f"http://{S3}:9000", **KEYS))
    for port in (29500, 41234, 9402):
        assert world.refusal(world.members["ns", "k"][0], world.member, port) == "Egress of k", "another job's member"
        assert world.refusal(world.members["elsewhere", "j"][0], world.member, port), "a namesake's member"
        assert world.refusal(world.stranger, world.member, port) == "Ingress of j", "a neighbour in the namespace"
        assert world.refusal(world.prometheus, world.member, port) == "Ingress of j"
        assert world.refusal(INTERNET, world.member, port) == "Ingress of j"
    assert world.refusal(world.member, INTERNET, 443) == "Egress of j"
    assert world.refusal(world.member, INTERNET, 53, "UDP") == "Egress of j", "a name server of someone's own"
    assert world.refusal(world.member, S3, 22) == "Egress of j"
    assert world.refusal(world.member, "169.254.169.254", 80) == "Egress of j", "the cloud's metadata service"
    assert world.refusal(world.member, "192.0.2.1", 6443) == "Egress of j", "the API server"
    assert world.refusal(world.member, world.stranger, 80) == "Egress of j"
    assert world.refusal(world.member, world.operator, 8080) == "Egress of j", "the operator's metrics"
    assert world.refusal(world.stranger, world.operator, 7443) == "Ingress of llmtrain"
    assert world.refusal(world.prometheus, world.operator, 8080) == "Ingress of llmtrain", "until it is named"
    assert world.refusal(world.operator, INTERNET, 80) == "Egress of llmtrain"


def test_narrower_values_narrow_and_further_rules_widen() -> None:
    """Watched namespaces, the API server's address, and egress that every job gets."""
    values = {
        "watch": {"namespaces": ["ns"]},
        "networkPolicy": {
            "apiServer": {"cidrs": ["192.0.2.1/32"], "ports": [6443]},
            "egress": [{"to": [{"ipBlock": {"cidr": "198.51.100.0/24"}}], "ports": [{"port": 443}]}],
        },
    }
    world = World(values, spec())
    assert not world.refusal(world.member, world.operator, 7443)
    assert world.refusal(world.members["elsewhere", "j"][0], world.operator, 7443) == "Ingress of llmtrain"
    assert not world.refusal(world.operator, "192.0.2.1", 6443)
    assert world.refusal(world.operator, "192.0.2.2", 6443) == "Egress of llmtrain"
    assert not world.refusal(world.member, INTERNET, 443)
    assert world.refusal(world.member, INTERNET, 80) == "Egress of j"


@pytest.mark.parametrize(
    ("job", "reached", "refused"),
    [
        pytest.param(spec(), [], [(S3, 443), (S3, 9000)], id="no-storage"),
        pytest.param(spec(durable={"storage": "pvc://claim/run"}), [], [(S3, 443), (S3, 2049)], id="claim"),
        pytest.param(on_s3(), [(INTERNET, 443), ("169.254.170.23", 80)], [(INTERNET, 80)], id="amazon-by-identity"),
        pytest.param(on_s3(**KEYS), [(INTERNET, 443)], [("169.254.170.23", 80)], id="amazon-by-secret"),
        pytest.param(
            on_s3(endpoint=f"https://{S3}", **KEYS), [(S3, 443)], [(INTERNET, 443), (S3, 80)], id="address-https"
        ),
        pytest.param(on_s3(endpoint=f"http://{S3}", **KEYS), [(S3, 80)], [(S3, 443)], id="address-http"),
        pytest.param(
            on_s3(endpoint="http://[2001:db8::5]:9000", **KEYS),
            [("2001:db8::5", 9000)],
            [("2001:db8::6", 9000)],
            id="address-v6",
        ),
        pytest.param(
            on_s3(endpoint="https://s3.example.org:9443", **KEYS), [(S3, 9443)], [(S3, 443)], id="name-by-port"
        ),
        pytest.param(
            spec(restoreFrom=STORAGE, s3={"endpoint": f"http://{S3}:9000", **KEYS}),
            [(S3, 9000)],
            [(S3, 9001)],
            id="restored-from",
        ),
        pytest.param(
            JobSpec.model_validate(BASE | {"model": {"pretrained": "org/model"}}),
            [(INTERNET, 443)],
            [(INTERNET, 80), (S3, 9000)],
            id="model-from-the-hub",
        ),
        pytest.param(
            JobSpec.model_validate(BASE | {"data": {"source": "/data", "tokenizer": "org/tokenizer@main"}}),
            [(INTERNET, 443)],
            [(INTERNET, 80)],
            id="tokenizer-from-the-hub",
        ),
    ],
)
def test_what_the_spec_names_can_be_reached_and_nothing_else(job, reached, refused) -> None:
    world = World({}, job)
    assert [end for end in reached if world.refusal(world.member, *end)] == []
    assert [end for end in refused if not world.refusal(world.member, *end)] == []


@pytest.mark.parametrize("host", ["minio.elsewhere.svc", "minio.elsewhere.svc.cluster.local"])
def test_storage_behind_a_service_is_granted_by_its_namespace(host) -> None:
    """The pod behind the Service listens where it likes."""
    world = World({}, on_s3(endpoint=f"http://{host}:80", **KEYS))
    assert not world.refusal(world.member, policies.Pod("elsewhere", {"app": "minio"}), 9000)
    assert world.refusal(world.member, policies.Pod("monitoring", {"app": "minio"}), 9000) == "Egress of j"


def test_no_rule_is_given_twice() -> None:
    """Amazon's storage and its token service are both behind port 443."""
    rules = storage_rules(on_s3())
    assert len(rules) == len({str(rule) for rule in rules}) == 2


@pytest.mark.parametrize("given", ["{", '{"to": []}', '["a"]'], ids=["not-json", "not-a-list", "not-rules"])
def test_rules_that_are_none_are_refused_at_the_start(given) -> None:
    """Before the first job gets a policy that the API server would refuse."""
    answer = CliRunner().invoke(main.main, [f"--member-egress={given}"])
    assert answer.exit_code == 2
    assert "--member-egress" in answer.output


def test_without_the_setting_jobs_have_no_policy() -> None:
    """networkPolicy.enabled is false: the flag is not there."""
    command = containers(render({"networkPolicy": {"enabled": False}}))["operator"]["command"]
    assert not [flag for flag in command if flag.startswith("--member-egress")]
    settings = manifests.Settings("t", "o", "wss://c", "CA")
    kinds = {o["kind"] for o in manifests.children(JobView("j", "ns", "u", 1), spec(), settings)}
    assert "NetworkPolicy" not in kinds
