"""Certificates of a cluster: who they speak for, and that they verify against its authority alone."""

import json
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from devcluster import pki


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Certificates of a cluster with two nodes."""
    path = tmp_path_factory.mktemp("pki")
    pki.create(path, ["n1", "n2"], 45678, datetime(2026, 1, 2, tzinfo=UTC))
    return path


def load(directory, name):
    return x509.load_pem_x509_certificate((directory / f"{name}.crt").read_bytes())


@pytest.mark.parametrize(
    ("file", "user", "group"),
    [
        pytest.param("admin", "admin", ["system:masters"], id="admin"),
        pytest.param("n2", "system:node:n2", ["system:nodes"], id="node"),
        pytest.param("scheduler", "system:kube-scheduler", [], id="scheduler"),
    ],
)
def test_a_certificate_speaks_for_its_bearer(directory, file, user, group):
    """Common name is the user, organisation the group; the cluster's authority signed it."""
    certificate = load(directory, file)
    certificate.verify_directly_issued_by(load(directory, "ca"))
    assert [a.value for a in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [user]
    assert [a.value for a in certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)] == group


def test_the_api_server_is_known_by_the_gates_and_the_services_names(directory):
    """Host (loopback), nodes and pods all verify it."""
    names = load(directory, "apiserver").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "kubernetes.default.svc" in names.get_values_for_type(x509.DNSName)
    assert {"127.0.0.1", "10.250.0.1", "10.252.0.1"} <= set(map(str, names.get_values_for_type(x509.IPAddress)))


def test_the_hosts_kubeconfig_goes_through_the_gate(directory):
    """The administrator on this machine talks to the loopback port."""
    document = json.loads((directory / "host.kubeconfig").read_text())
    assert document["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:45678"


def test_keys_are_for_root_alone(directory):
    """No key file can be read by others."""
    assert {oct(key.stat().st_mode & 0o777) for key in directory.glob("*.key")} == {"0o600"}
