"""Certificates and kubeconfigs of one cluster: one CA, one client certificate per component and node.

Keys are P-256, valid for ten years, made anew at each start and readable by root alone. Identities are those that the
default RBAC bindings and the Node authorizer expect, so nothing but the administrator has the run of the cluster.
"""

import ipaddress
import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from devcluster import config

_LIFETIME = timedelta(days=3650)
_CLOCK_SLACK = timedelta(hours=1)

API_SERVER_NAMES = (
    config.CONTROL_PLANE_IP,
    "127.0.0.1",
    config.KUBERNETES_SERVICE_IP,
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    f"kubernetes.default.svc.{config.CLUSTER_DOMAIN}",
)
# file name -> (common name, organisation)
COMPONENTS = {
    "admin": ("admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "coredns": ("devcluster:coredns", ""),
    "proxy": ("system:kube-proxy", ""),
    "front-proxy": ("front-proxy", ""),
}


class Authority:
    """A certificate authority that writes what it issues into one directory."""

    def __init__(self, directory: Path, now: datetime) -> None:
        """Make the CA and write ca.crt and ca.key; `now` is timezone-aware."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._begin, self._end = now - _CLOCK_SLACK, now + _LIFETIME
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "devcluster")])
        self._key_id = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        builder = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(self._key_id, critical=False)
        )
        self._write("ca", self._key, builder)

    def issue(self, file: str, common_name: str, organisation: str = "", names: Sequence[str] = ()) -> None:
        """Write FILE.crt and FILE.key; `names` are DNS names and IP addresses of a server."""
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
        if organisation:
            attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation))
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = (
            self._builder(x509.Name(attributes), key)
            .add_extension(usages, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._key_id), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(_general_names(names)), critical=False)
        self._write(file, key, builder)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._begin)
            .not_valid_after(self._end)
        )

    def _write(self, file: str, key: ec.EllipticCurvePrivateKey, builder: x509.CertificateBuilder) -> None:
        certificate = builder.sign(self._key, hashes.SHA256())
        _write_key(self._directory / f"{file}.key", key)
        (self._directory / f"{file}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def create(directory: Path, nodes: Iterable[str], gate_port: int, now: datetime) -> None:
    """Write every certificate, the service account keys and the kubeconfigs of a cluster into `directory`.

    `host.kubeconfig` is the administrator's on this machine, through the gate; the others are for processes inside.
    """
    authority = Authority(directory, now)
    authority.issue("apiserver", "kube-apiserver", names=API_SERVER_NAMES)
    for file, (common_name, organisation) in COMPONENTS.items():
        authority.issue(file, common_name, organisation)
    for node in nodes:
        authority.issue(node, f"system:node:{node}", "system:nodes", [config.node_ip(node), node])
    _write_service_account_keys(directory)
    inside = f"https://{config.CONTROL_PLANE_IP}:{config.API_PORT}"
    for user in (*COMPONENTS, *nodes):
        _write_kubeconfig(directory, user, user, inside)
    _write_kubeconfig(directory, "host", "admin", f"https://127.0.0.1:{gate_port}")


def _general_names(names: Sequence[str]) -> list[x509.GeneralName]:
    general: list[x509.GeneralName] = []
    for name in names:
        try:
            general.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            general.append(x509.DNSName(name))
    return general


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _write_service_account_keys(directory: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    _write_key(directory / "sa.key", key)
    (directory / "sa.pub").write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def _write_kubeconfig(directory: Path, file: str, user: str, server: str) -> None:
    text = json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "devcluster",
            "contexts": [{"name": "devcluster", "context": {"cluster": "devcluster", "user": user}}],
            "clusters": [
                {
                    "name": "devcluster",
                    "cluster": {"server": server, "certificate-authority": str(directory / "ca.crt")},
                }
            ],
            "users": [
                {
                    "name": user,
                    "user": {
                        "client-certificate": str(directory / f"{user}.crt"),
                        "client-key": str(directory / f"{user}.key"),
                    },
                }
            ],
        },
        indent=1,
    )
    (directory / f"{file}.kubeconfig").write_text(text + "\n")
