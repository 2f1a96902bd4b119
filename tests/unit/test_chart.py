"""The Helm chart as rendered: valid objects, the rights that are meant and no others, certificates that fit."""

import base64
import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import helm_python as helm
import kubernetes_validate
import pytest
import yaml
from click import Option
from cryptography import x509

from llmtrain_operator import departure, main, manifests, policy
from llmtrain_operator.api.validation import parse
from llmtrain_operator.contract import names
from llmtrain_operator.coordinator import main as coordinator
from llmtrain_operator.state import JobView
from tests.support.chart import (
    CHART,
    CLUSTER_RIGHTS,
    RIGHTS,
    containers,
    find,
    render,
    rights,
    values_of_file,
    values_of_schema,
    values_table,
)

ROOT = Path(__file__).parents[2]
MINIMAL = "{model: {preset: gpt-tiny}, data: {source: /data}, training: {maxSteps: 1}}"
NAMESPACED = {"watch": {"namespaces": ["team-a", "team-b"], "nodes": False}}
POLICY = {
    "contact": 'ask "us"',
    "default": {"maxNodes": 8, "defaults": {"ttlSecondsAfterFinished": 60}},
    "namespaces": {"team-a": {"maxNodes": 16, "storage": ["s3://team-a"], "s3Endpoints": ["https://minio:9000"]}},
}
EVERYTHING = {
    "image": {"repository": "example/operator", "tag": "1", "pullPolicy": "Never"},
    "trainerImage": {"repository": "example/trainer", "tag": "2", "pullSecrets": ["members"]},
    "imagePullSecrets": [{"name": "pull"}],
    "coordinator": {"tlsSecret": "mine", "heartbeatDeadlineSeconds": 2.5},
    "nodeSelector": {"zone": "a"},
    "tolerations": [{"key": "control", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "high",
    "podLabels": {"team": "ml"},
    "podAnnotations": {"note": "x"},
    "aggregateRoles": False,
    "podDisruptionBudget": {"maxUnavailable": "50%"},
    "topologySpreadConstraints": [{"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
    "networkPolicy": {
        "egress": [{"to": [{"ipBlock": {"cidr": "10.9.0.0/16"}}], "ports": [{"port": 443}]}],
        "dns": {"to": [{"namespaceSelector": {}}], "ports": [53, 5353]},
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"team": "monitoring"}}}],
        "apiServer": {"cidrs": ["10.0.0.1/32"], "ports": [443]},
    },
    "policy": POLICY,
}
OPEN = {"networkPolicy": {"enabled": False}, "podDisruptionBudget": {"enabled": False}}
CASES = pytest.mark.parametrize(
    "values", [{}, NAMESPACED, EVERYTHING, OPEN], ids=["defaults", "namespaced", "everything", "open"]
)


def test_lint_finds_no_errors_or_warnings():
    report = helm.lint(str(CHART))
    information = 1
    assert not report["errors"]
    assert [m for m in report["messages"] if m["severity"] > information] == []


@CASES
def test_every_object_is_valid_kubernetes(values):
    objects = render(values)
    assert {o["kind"] for o in objects} >= {"Deployment", "Service", "ServiceAccount", "ClusterRole"}
    for obj in (o for o in objects if o["kind"] != "CustomResourceDefinition"):  # the API tier gives it to a server
        kubernetes_validate.validate(obj, "1.36", strict=True)


@CASES
def test_flags_are_ones_that_the_programs_have(values):
    """The chart and the two command lines cannot drift apart."""
    rendered = containers(render(values))
    known = {name for parameter in main.main.params if isinstance(parameter, Option) for name in parameter.opts}
    given = rendered["operator"]["command"]
    assert given[0] == "llmtrain-operator"
    assert {flag.partition("=")[0] for flag in given[1:]} <= known
    command = rendered["coordinator"]["command"]
    assert command[0] == "llmtrain-coordinator"
    assert coordinator.parse(command[1:]).control_socket == Path("/run/llmtrain/coordinator.sock")


def test_the_operator_has_these_rights_and_no_others():
    objects = render({})
    assert rights(find(objects, "ClusterRole", "-jobs")) == RIGHTS
    assert rights(find(objects, "ClusterRole", "-cluster")) == CLUSTER_RIGHTS
    assert find(objects, "ClusterRoleBinding", "-jobs")["roleRef"]["name"] == "llmtrain-jobs"
    bound = {o["roleRef"]["name"] for o in objects if o["kind"].endswith("RoleBinding")}
    assert bound == {"llmtrain-jobs", "llmtrain-cluster", "llmtrain-lease"}


@CASES
def test_no_role_has_wildcards_secrets_or_exec(values):
    for role in (o for o in render(values) if o["kind"] in ("ClusterRole", "Role")):
        for (group, resource), verbs in rights(role).items():
            assert "*" not in {group, resource} | verbs
            assert resource not in ("secrets", "pods/exec", "pods/attach")


def test_namespaced_mode_binds_jobs_rights_only_in_those_namespaces():
    objects = render(NAMESPACED)
    bindings = [o for o in objects if o["kind"] == "RoleBinding" and o["metadata"]["name"].endswith("-jobs")]
    assert {o["metadata"]["namespace"] for o in bindings} == {"team-a", "team-b"}
    assert {o["roleRef"]["name"] for o in objects if o["kind"] == "ClusterRoleBinding"} == {"llmtrain-cluster"}
    assert set(rights(find(objects, "ClusterRole", "-cluster"))) == {("authentication.k8s.io", "tokenreviews")}
    assert "--namespaces=team-a,team-b" in containers(objects)["operator"]["command"]


@CASES
def test_containers_are_hardened_and_bounded(values):
    pod = find(render(values), "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]
        assert {"livenessProbe", "readinessProbe"} <= set(container)


def test_only_the_coordinator_sees_the_private_key():
    pod = find(render({}), "Deployment")["spec"]["template"]["spec"]
    volumes = {v["name"]: v for v in pod["volumes"]}
    mounts = {c["name"]: {m["name"] for m in c["volumeMounts"]} for c in pod["containers"]}
    assert [item["key"] for item in volumes["coordinator-ca"]["secret"]["items"]] == ["ca.crt"]
    assert "coordinator-tls" in mounts["coordinator"]
    assert "coordinator-tls" not in mounts["operator"]


@pytest.mark.parametrize("release", ["llmtrain", "prod"])
def test_the_certificate_fits_the_address_that_agents_are_given(release):
    objects = render({}, release)
    data = {key: base64.b64decode(value) for key, value in find(objects, "Secret")["data"].items()}
    certificate = x509.load_pem_x509_certificate(data["tls.crt"])
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(data["ca.crt"]))
    [flag] = [f for f in containers(objects)["operator"]["command"] if f.startswith("--coordinator-url=")]
    urls = [urlsplit(url) for url in flag.removeprefix("--coordinator-url=").split(",")]
    hosts = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    services = [find(objects, "Service", name) for name in ("-coordinator", "-coordinator-replicas")]
    for url, service in zip(urls, services, strict=True):
        assert url.hostname in hosts.get_values_for_type(x509.DNSName)
        assert url.hostname == f"{service['metadata']['name']}.ops.svc"
        assert url.port == service["spec"]["ports"][0]["port"]
        assert service["spec"]["publishNotReadyAddresses"] is True
    assert [service["spec"].get("clusterIP") for service in services] == [None, "None"]


def test_names_fit_however_long_the_release_is_called():
    """Names of Services are DNS labels."""
    for service in (o for o in render({}, "r" * 53) if o["kind"] == "Service"):
        assert len(service["metadata"]["name"]) <= 63


def test_replicas_share_a_lease_that_they_may_use_and_no_other():
    """The flag, the object and the right are about the same Lease, which the chart leaves empty for its users."""
    objects = render({}, "prod")
    lease, role = find(objects, "Lease"), find(objects, "Role", "-lease")
    assert "spec" not in lease
    name = lease["metadata"]["name"]
    assert f"--lease=ops/{name}" in containers(objects)["operator"]["command"]
    assert role["rules"] == [
        {
            "apiGroups": ["coordination.k8s.io"],
            "resources": ["leases"],
            "resourceNames": [name],
            "verbs": ["get", "patch"],
        }
    ]
    deployment = find(objects, "Deployment")["spec"]
    assert (deployment["replicas"], deployment["strategy"]["rollingUpdate"]["maxUnavailable"]) == (2, 0)


def test_an_own_certificate_replaces_the_generated_one():
    objects = render(EVERYTHING)
    assert not [o for o in objects if o["kind"] == "Secret"]
    volumes = find(objects, "Deployment")["spec"]["template"]["spec"]["volumes"]
    assert {v["secret"]["secretName"] for v in volumes if "secret" in v} == {"mine"}


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"imagee": {}}, "imagee"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"watch": {"namespaces": "default"}}, "namespaces"),
        ({"coordinator": {"heartbeatDeadlineSeconds": 0.1}}, "heartbeatDeadlineSeconds"),
        ({"logLevel": "loud"}, "logLevel"),
        ({"networkPolicy": {"egres": []}}, "networkPolicy.*egres"),
        ({"networkPolicy": {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.1"}}]}]}}, "cidr"),
        ({"networkPolicy": {"metricsFrom": [{"namespaceselector": {}}]}}, "namespaceselector"),
        ({"networkPolicy": {"dns": {"to": []}}}, "dns/to"),
        ({"podDisruptionBudget": {"maxUnavailable": "half"}}, "maxUnavailable"),
        ({"resources": {"request": {"cpu": 1}}}, "resources.*request"),
        ({"tolerations": [{"effect": "NoRun"}]}, "tolerations/0/effect"),
        ({"topologySpreadConstraints": [{"topologyKey": "zone"}]}, "maxSkew"),
        ({"imagePullSecrets": ["name"]}, "imagePullSecrets"),
        ({"crds": {"instal": False}}, "instal"),
        ({"metrics": {"monitors": True}}, "monitors"),
        ({"metrics": {"interval": "often"}}, "interval"),
    ],
    ids=lambda value: value.replace(".*", "-").replace("/", "-") if isinstance(value, str) else "",
)
def test_wrong_values_are_refused_by_name(values, field):
    with pytest.raises(helm.HelmError, match=field):
        render(values)


def test_the_crd_is_the_generated_one_and_outlives_the_release():
    """As a template, since Helm never upgrades crds/; kept on uninstall, since deleting it deletes every job."""
    assert not list(CHART.glob("crds/*")), "`make crd` writes to files/: a copy in crds/ would never be upgraded"
    rendered = find(render({}), "CustomResourceDefinition")
    assert rendered["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert rendered == yaml.safe_load((ROOT / "crds" / "llmtrainjobs.yaml").read_text())
    assert not [o for o in render({"crds": {"install": False}}) if o["kind"] == "CustomResourceDefinition"]


def test_every_value_is_described_and_has_its_default_in_the_file():
    """Schema and file name the same values, so a typo in either is an error, and the docs can be made of them."""
    described = dict(values_of_schema())
    assert set(described) - {"global"} == set(values_of_file())
    assert not [name for name, text in described.items() if not text.endswith((".", "}]."))]


def test_the_docs_list_every_value():
    """`python -m tests.support.chart` writes the table."""
    assert values_table() in (ROOT / "docs" / "install.md").read_text()


def test_the_operators_pods_are_spread_and_kept_up():
    """By default over nodes and one at a time; constraints of the user's own are about the same pods."""
    objects, own = render({}), render(EVERYTHING)
    selector = find(objects, "Deployment")["spec"]["selector"]
    [spread] = find(objects, "Deployment")["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    [theirs] = find(own, "Deployment")["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert (theirs["topologyKey"], theirs["maxSkew"]) == ("zone", 2)
    assert spread["labelSelector"] == theirs["labelSelector"] == selector
    budget = find(objects, "PodDisruptionBudget")["spec"]
    assert (budget["maxUnavailable"], budget["selector"]) == (1, selector)
    assert find(own, "PodDisruptionBudget")["spec"]["maxUnavailable"] == "50%"


def test_a_private_registry_is_for_operator_and_members():
    """The operator's pods have their secrets by reference; members get the names of theirs by flag."""
    objects = render(EVERYTHING)
    pod = find(objects, "Deployment")["spec"]["template"]["spec"]
    assert (pod["imagePullSecrets"], pod["priorityClassName"]) == ([{"name": "pull"}], "high")
    assert "--image-pull-secret=members" in containers(objects)["operator"]["command"]
    assert containers(objects)["operator"]["image"] == "example/operator:1"
    assert "--trainer-image=example/trainer:2" in containers(objects)["operator"]["command"]


def notes(values: dict, **how: bool) -> str:
    with helm.Chart.load(str(CHART)) as chart:
        return chart.render(values, name="llmtrain", namespace="ops", **how)["llmtrain/templates/NOTES.txt"]


def test_notes_name_the_next_command():
    """After an install a job that can be applied as it stands; after an upgrade how to see that jobs train on."""
    first = notes({}, is_install=True)
    assert "kubectl -n ops rollout status deployment/llmtrain" in first
    [example] = [part for part in first.split("YAML") if "kind: LLMTrainJob" in part]
    spec, problems = parse("first", yaml.safe_load(example)["spec"])
    assert (spec is not None, problems) == (True, ())
    assert "kubectl apply -n team-a -f -" in notes(NAMESPACED, is_install=True)
    assert "kubectl get ltj -A" in notes({}, is_upgrade=True)
    assert "llmtrain crd | kubectl apply" in notes({"crds": {"install": False}}, is_install=True)


def test_the_taints_that_announce_a_departure_reach_the_operator():
    """Without a word the operator's own list, which the values show; an empty list is none."""
    for values, expected in (
        ({}, departure.TAINTS),
        ({"watch": {"departureTaints": ["example.com/going", "Going"]}}, ("example.com/going", "Going")),
        ({"watch": {"departureTaints": []}}, ()),
    ):
        [flag] = [f for f in containers(render(values))["operator"]["command"] if f.startswith("--departure-taints=")]
        assert main._listed(flag.partition("=")[2]) == expected
    with pytest.raises(helm.HelmError, match="departureTaints"):
        render({"watch": {"departureTaints": ["key=value:NoSchedule"]}})


def test_the_policy_reaches_the_operator_as_it_was_written():
    """Whatever its words hold; a field that does not exist is refused before it is installed."""
    [given] = [flag for flag in containers(render(EVERYTHING))["operator"]["command"] if flag.startswith("--policy=")]
    assert policy.read(given.removeprefix("--policy=")) == policy.Policy.model_validate(POLICY)
    with pytest.raises(helm.HelmError, match="maxNode"):
        render({"policy": {"default": {"maxNode": 1}}})


MONITORS = {"metrics": {"monitors": "always", "labels": {"release": "stack"}, "interval": "5s"}}


def rendered_where_there_are_monitors(values, tmp_path):
    """As in a cluster with the Prometheus operator: the template asks for a kind that every cluster has instead."""
    copy = tmp_path / "llmtrain"
    shutil.copytree(CHART, copy)
    helpers = copy / "templates" / "_helpers.tpl"
    asked = '(printf "monitoring.coreos.com/v1/%s" .kind)'
    assert helpers.read_text().count(asked) == 1
    helpers.write_text(helpers.read_text().replace(asked, '"apps/v1"'))
    return render(values, chart=copy)


def kinds(objects):
    return [o["kind"] for o in objects if o["kind"].endswith("Monitor")]


@pytest.mark.parametrize(
    ("values", "without", "with_crds"),
    [
        ({}, 0, 2),
        ({"metrics": {"monitors": "never"}}, 0, 0),
        ({"metrics": {"monitors": "always"}}, 2, 2),
    ],
    ids=["auto", "never", "always"],
)
def test_monitors_are_there_where_their_crds_are(values, without, with_crds, tmp_path):
    """By default; a chart that is rendered without the cluster is told so."""
    assert len(kinds(render(values))) == without
    assert len(kinds(rendered_where_there_are_monitors(values, tmp_path))) == with_crds


def test_the_operators_monitor_finds_its_ports():
    """Of the Service, and behind it of the containers; Prometheus may choose monitors by a label of its own."""
    objects = render(MONITORS)
    monitor, service = find(objects, "ServiceMonitor"), find(objects, "Service", "-metrics")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    services = [o for o in objects if o["kind"] == "Service"]
    assert [o for o in services if wanted <= o["metadata"]["labels"].items()] == [service]
    ports = {port["name"]: port for port in service["spec"]["ports"]}
    assert [endpoint["port"] for endpoint in monitor["spec"]["endpoints"]] == list(ports)
    assert all(endpoint["honorLabels"] and endpoint["interval"] == "5s" for endpoint in monitor["spec"]["endpoints"])
    named = {port["name"]: port["containerPort"] for c in containers(objects).values() for port in c["ports"]}
    assert {named[port["targetPort"]] for port in ports.values()} == {8080, 8081}
    assert all(port["port"] == named[port["targetPort"]] for port in ports.values())
    assert monitor["metadata"]["labels"]["release"] == "stack"
    template = find(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= template.items()


@pytest.mark.parametrize(
    ("values", "where"),
    [({}, {"any": True}), (NAMESPACED, {"matchNames": ["team-a", "team-b"]})],
    ids=["everywhere", "namespaced"],
)
def test_the_members_monitor_finds_them_and_takes_nobodys_word(values, where):
    """By their pods' labels and port; a member that says it is another's has those labels dropped."""
    objects = render(values | MONITORS)
    monitor = find(objects, "PodMonitor", "-members")["spec"]
    assert monitor["namespaceSelector"] == where
    view, (spec, _) = JobView("j", "team-a", "uid", 1), parse("j", yaml.safe_load(MINIMAL))
    pod = manifests.member_pod(view, spec, 3, 1, manifests.Settings("t", "o", "wss://c", ""))
    assert monitor["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    [endpoint] = monitor["podMetricsEndpoints"]
    [port] = pod["spec"]["containers"][0]["ports"]
    assert (port["name"], port["containerPort"]) == (endpoint["port"], 9402)
    assert not endpoint.get("honorLabels")
    assert pod["metadata"]["labels"][monitor["jobLabel"]] == "j"
    [relabeling] = endpoint["relabelings"]
    [source] = relabeling["sourceLabels"]
    assert source == "__meta_kubernetes_pod_label_" + re.sub(r"[./-]", "_", names.LABEL_INDEX)
    [dropped] = endpoint["metricRelabelings"]
    assert all(re.fullmatch(dropped["regex"], f"exported_{name}") for name in ("namespace", "job", "member"))


def test_who_may_read_metrics_reaches_the_operator():
    """Which puts it into the jobs' policies."""
    [flag] = [f for f in containers(render(EVERYTHING))["operator"]["command"] if f.startswith("--metrics-from=")]
    assert main._rules(None, None, flag.partition("=")[2]) == tuple(EVERYTHING["networkPolicy"]["metricsFrom"])
    assert not [f for f in containers(render({}))["operator"]["command"] if f.startswith("--metrics-from=")]
