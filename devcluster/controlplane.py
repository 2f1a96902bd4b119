"""etcd, API server, controller manager, scheduler and DNS: their command lines (pure) and their start.

All run as plain processes in the cluster's network namespace. etcd lives in memory and does not sync: a cluster is not
meant to survive its machine. Failure detection is as quick as the settings say, and evictions are not throttled, for a
handful of nodes is always a large share of this cluster.
"""

import socket
import sys
from pathlib import Path

from devcluster import config, gate
from devcluster.cgroups import ClusterGroups
from devcluster.config import ClusterConfig
from devcluster.errors import DevclusterError
from devcluster.kubeapi import Json, KubeApi
from devcluster.space import Space, wait_for

ETCD_URL = "http://127.0.0.1:2379"
ETCD_PEER_URL = "http://127.0.0.1:2380"
RBAC = "rbac.authorization.k8s.io"


def etcd_command() -> list[str]:
    """Command line of etcd."""
    return [
        "etcd",
        "--data-dir=/run/etcd",
        f"--listen-client-urls={ETCD_URL}",
        f"--advertise-client-urls={ETCD_URL}",
        f"--listen-peer-urls={ETCD_PEER_URL}",
        f"--initial-advertise-peer-urls={ETCD_PEER_URL}",
        f"--initial-cluster=default={ETCD_PEER_URL}",
        "--log-level=warn",
        "--unsafe-no-fsync",
    ]


def api_server_command(settings: ClusterConfig, pki: Path) -> list[str]:
    """Command line of the API server.

    Aggregator routing sends webhook calls straight to pod addresses: no kube-proxy serves this network namespace.
    """
    return [
        "kube-apiserver",
        f"--etcd-servers={ETCD_URL}",
        f"--bind-address={config.CONTROL_PLANE_IP}",
        f"--advertise-address={config.CONTROL_PLANE_IP}",
        f"--secure-port={config.API_PORT}",
        f"--service-cluster-ip-range={config.SERVICE_NETWORK}",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--client-ca-file={pki}/ca.crt",
        f"--kubelet-client-certificate={pki}/admin.crt",
        f"--kubelet-client-key={pki}/admin.key",
        f"--kubelet-certificate-authority={pki}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-account-issuer=https://kubernetes.default.svc.{config.CLUSTER_DOMAIN}",
        f"--service-account-key-file={pki}/sa.pub",
        f"--service-account-signing-key-file={pki}/sa.key",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--profiling=false",
        "--enable-aggregator-routing=true",
        f"--requestheader-client-ca-file={pki}/ca.crt",
        "--requestheader-allowed-names=front-proxy",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={pki}/front-proxy.crt",
        f"--proxy-client-key-file={pki}/front-proxy.key",
        f"--default-not-ready-toleration-seconds={settings.toleration_seconds}",
        f"--default-unreachable-toleration-seconds={settings.toleration_seconds}",
        *_gates(settings),
        *([f"--runtime-config={','.join(settings.runtime_config)}"] if settings.runtime_config else []),
    ]


def controller_manager_command(settings: ClusterConfig, pki: Path, scratch: Path) -> list[str]:
    """Command line of the controller manager; `scratch` is a directory that it may search for volume plugins."""
    return [
        "kube-controller-manager",
        *_client_flags(settings, pki, "controller-manager"),
        f"--service-account-private-key-file={pki}/sa.key",
        f"--root-ca-file={pki}/ca.crt",
        "--use-service-account-credentials=true",
        f"--cluster-signing-cert-file={pki}/ca.crt",
        f"--cluster-signing-key-file={pki}/ca.key",
        "--controllers=*,-nodeipam",
        "--node-monitor-period=1s",
        f"--node-monitor-grace-period={settings.grace_seconds}s",
        "--node-startup-grace-period=20s",
        "--node-eviction-rate=10",
        "--secondary-node-eviction-rate=10",
        "--unhealthy-zone-threshold=1.0",
        "--terminated-pod-gc-threshold=500",
        f"--flex-volume-plugin-dir={scratch}",
    ]


def scheduler_command(settings: ClusterConfig, pki: Path) -> list[str]:
    """Command line of the scheduler."""
    return ["kube-scheduler", *_client_flags(settings, pki, "scheduler")]


def corefile(pki: Path) -> str:
    """DNS for the cluster's own names, uncached so that a new endpoint is visible at once; others are not resolved."""
    return f""".:53 {{
  bind {config.CONTROL_PLANE_IP}
  errors
  kubernetes {config.CLUSTER_DOMAIN} in-addr.arpa {{
    kubeconfig {pki}/coredns.kubeconfig
    pods insecure
    ttl 1
    fallthrough in-addr.arpa
  }}
}}
"""


def base_objects(settings: ClusterConfig, shared: Path) -> list[tuple[str, Json]]:
    """(collection path, object) pairs of what every cluster starts with: DNS' permissions and the shared volumes."""
    permissions: list[tuple[str, Json]] = [
        (
            f"/apis/{RBAC}/v1/clusterroles",
            {
                "metadata": {"name": "devcluster:coredns"},
                "rules": [
                    {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
                    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
                ],
            },
        ),
        (
            f"/apis/{RBAC}/v1/clusterrolebindings",
            {
                "metadata": {"name": "devcluster:coredns"},
                "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "devcluster:coredns"},
                "subjects": [{"kind": "User", "name": "devcluster:coredns", "apiGroup": RBAC}],
            },
        ),
    ]
    return permissions + (_shared_storage(shared) if settings.nodes else [])


def _shared_storage(shared: Path) -> list[tuple[str, Json]]:
    storage_class = {
        "metadata": {"name": "shared", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "kubernetes.io/no-provisioner",
    }
    volumes = [
        {
            "metadata": {"name": volume_name(index)},
            "spec": {
                "storageClassName": "shared",
                "capacity": {"storage": "100Gi"},
                "accessModes": ["ReadWriteMany", "ReadWriteOnce", "ReadOnlyMany"],
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": str(shared / volume_name(index)), "type": "Directory"},
            },
        }
        for index in range(config.SHARED_VOLUMES)
    ]
    return [
        ("/apis/storage.k8s.io/v1/storageclasses", storage_class),
        *(("/api/v1/persistentvolumes", volume) for volume in volumes),
    ]


def volume_name(index: int) -> str:
    """Name of a shared volume, and of its directory."""
    return f"shared-{index}"


def _gates(settings: ClusterConfig) -> list[str]:
    return [f"--feature-gates={settings.gates_flag}"] if settings.feature_gates else []


def _client_flags(settings: ClusterConfig, pki: Path, user: str) -> list[str]:
    kubeconfig = pki / f"{user}.kubeconfig"
    return [
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
        *_gates(settings),
    ]


class ControlPlane:
    """The control plane's processes of one cluster."""

    def __init__(self, settings: ClusterConfig, directory: Path, space: Space, groups: ClusterGroups) -> None:
        """`directory` is the cluster's; nothing is started yet."""
        self._settings, self._directory, self._space, self._groups = settings, directory, space, groups
        self._pki = directory / "pki"

    def start_api(self, listener: socket.socket) -> None:
        """Start etcd, the API server and the gate that serves `listener`; returns before they are ready."""
        target = [config.CONTROL_PLANE_IP, str(config.API_PORT)]
        gate_command = [sys.executable, "-I", str(gate.__file__), str(listener.fileno()), *target]
        self._spawn("gate", gate_command, (listener.fileno(),))
        self._spawn("etcd", etcd_command())
        self._spawn("kube-apiserver", api_server_command(self._settings, self._pki))

    def wait_ready(self, api: KubeApi, seconds: float = 90) -> None:
        """Wait until the API server is ready; a process that died meanwhile is an error with the end of its log."""

        def ready() -> bool:
            for name in ("etcd", "kube-apiserver"):
                self._check_alive(name)
            return api.ready()

        wait_for(ready, seconds, "the API server", interval=0.03)

    def start_controllers(self) -> None:
        """Start the controller manager and the scheduler."""
        scratch = self._directory / "run"
        self._spawn("kube-controller-manager", controller_manager_command(self._settings, self._pki, scratch))
        self._spawn("kube-scheduler", scheduler_command(self._settings, self._pki))

    def start_dns(self) -> None:
        """Start CoreDNS; its permissions must exist."""
        file = self._directory / "run" / "Corefile"
        file.write_text(corefile(self._pki))
        self._spawn("coredns", ["coredns", "-conf", str(file)])

    def _spawn(self, name: str, command: list[str], fds: tuple[int, ...] = ()) -> None:
        log, pid_file = self._directory / "log" / f"{name}.log", self._directory / "run" / f"{name}.pid"
        groups = self._groups.entry("cp")
        self._space.spawn(command, groups=groups, log=log, pid_file=pid_file, pass_fds=fds)

    def _check_alive(self, name: str) -> None:
        pid = (self._directory / "run" / f"{name}.pid").read_text().strip()
        if not (self._space.root / "proc" / pid).exists():
            log = self._directory / "log" / f"{name}.log"
            raise DevclusterError(f"{name} died; the end of {log}:\n{log.read_text()[-2000:]}")
