"""The files of one node: its boot script and the configurations of containerd, CNI, kubelet and kube-proxy. Pure."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devcluster import config
from devcluster.config import ClusterConfig

CRUN_WRAPPER = """#!/bin/sh
# containerd 2.4 writes ociVersion 1.3.0, which Debian's crun 1.8 refuses without needing anything of it.
previous= bundle=
for argument; do case $previous in --bundle|-b) bundle=$argument;; esac; previous=$argument; done
[ -z "$bundle" ] || sed -i '1s/"ociVersion":"1\\.[0-9.]*"/"ociVersion":"1.0.2"/' "$bundle/config.json"
exec /usr/bin/crun "$@"
"""
# Directories of the node's disk and where the node's processes see them. /run is memory and lost at power off.
DISK = {
    "kubelet": "/var/lib/kubelet",
    "containerd": "/var/lib/containerd",
    "cni": "/var/lib/cni",
    "log": "/var/log",
}
LAYER_MOUNTS = "layer-mounts"
_UNUSED_PLUGINS = (
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.native",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.differ.v1.erofs",
    "io.containerd.nri.v1.nri",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.internal.v1.tracing",
    "io.containerd.internal.v1.restart",
)
# The kubelet writes these; the node gets its own copies, so that the host's stay as they are.
_SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


@dataclass(frozen=True)
class NodePlan:
    """One node of one cluster. `hierarchies`: controllers of each cgroup v1 hierarchy; empty means cgroup v2."""

    name: str
    settings: ClusterConfig
    directory: Path
    pki: Path
    hierarchies: tuple[str, ...]
    machine_cores: int


def render(plan: NodePlan) -> dict[str, str]:
    """All files by path relative to the node's directory."""
    files = {
        "init.sh": boot_script(plan),
        "machine-id": f"{config.node_index(plan.name):032x}\n",
        "resolv.conf": f"nameserver {config.CONTROL_PLANE_IP}\n",
        "containerd.toml": containerd_config(plan.directory),
        "cni.d/10-pods.conflist": json.dumps(cni_config(plan.name), indent=1),
        "kubelet.json": json.dumps(kubelet_config(plan), indent=1),
        "kube-proxy.json": json.dumps(kube_proxy_config(plan.name, plan.pki), indent=1),
        "crun": CRUN_WRAPPER,
    }
    return files | {f"sysctl/{name.replace('/', '.')}": f"{value}\n" for name, value in _SYSCTLS.items()}


def meminfo(host: str, memory_bytes: int) -> str:
    """/proc/meminfo of a node with that much memory: the kubelet takes the node's capacity from it."""
    return re.sub(r"(MemTotal|MemFree|MemAvailable):.*", rf"\1: {memory_bytes >> 10} kB", host)


def boot_script(plan: NodePlan) -> str:
    """pid 1's way up, in fresh namespaces: mounts, then a pause process that reaps orphans.

    The first line reads the cluster's /proc, so the pid is the one by which the cluster can enter the node.
    """
    disk = plan.directory
    lines = [
        "set -e",
        "read -r pid rest </proc/self/stat",
        "mount -t proc proc /proc",
        "mount -t sysfs sysfs /sys",
        *(_cgroup_v1_mounts(plan.hierarchies) if plan.hierarchies else _CGROUP_V2_MOUNT),
        "mount -t tmpfs -o mode=755 tmpfs /run",
        "mkdir -p /run/containerd /run/netns /run/lock /run/cni",
        "mount -t tmpfs -o mode=755 tmpfs /var/lib",
        *(f"mkdir -p {inside} && mount --bind {disk}/{outside} {inside}" for outside, inside in DISK.items()),
        f"[ ! -e {disk}/{LAYER_MOUNTS} ] || while read -r source target; do",
        '  mount --bind "$source" "$target" && mount -o remount,bind,ro "$target"',
        f"done <{disk}/{LAYER_MOUNTS}",
        f"cat /proc/sys/kernel/random/uuid >{disk}/boot_id",
        f"mount --bind {disk}/boot_id /proc/sys/kernel/random/boot_id",
        f"[ ! -e /etc/machine-id ] || mount --bind {disk}/machine-id /etc/machine-id",
        *(f"mount --bind {disk}/sysctl/{name.replace('/', '.')} /proc/sys/{name}" for name in _SYSCTLS),
        *([f"mount --bind {disk}/meminfo /proc/meminfo"] if plan.settings.node_memory else []),
        "mount --bind /dev/null /dev/kmsg",
        "mount --make-rshared /",
        f"hostname {plan.name}",
        f'echo "$pid" >{disk}/init.pid.new',
        f"mv {disk}/init.pid.new {disk}/init.pid",
        "exec catatonit -P",
    ]
    return "\n".join(lines) + "\n"


# A group with processes may not pass controllers on, so the node's own processes move into a leaf first.
_CGROUP_V2_MOUNT = [
    "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
    "mkdir /sys/fs/cgroup/init",
    "echo $$ >/sys/fs/cgroup/init/cgroup.procs",
    "for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do"
    " echo +$controller >/sys/fs/cgroup/cgroup.subtree_control; done",
]


def _cgroup_v1_mounts(hierarchies: tuple[str, ...]) -> list[str]:
    lines = ["mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup"]
    for controllers in hierarchies:
        if controllers:
            options = f"none,{controllers}" if controllers.startswith("name=") else controllers
            place = f"/sys/fs/cgroup/{controllers.removeprefix('name=')}"
            lines.append(f"mkdir {place} && mount -t cgroup -o {options} cgroup {place}")
        if "," in controllers:
            lines += [f"ln -s {controllers} /sys/fs/cgroup/{controller}" for controller in controllers.split(",")]
    return lines


def containerd_config(directory: Path) -> str:
    """containerd's configuration: overlayfs, crun, cgroupfs."""
    unused = ", ".join(f'"{plugin}"' for plugin in _UNUSED_PLUGINS)
    runtime = "plugins.'io.containerd.cri.v1.runtime'"
    return f"""version = 3
disabled_plugins = [{unused}]

[plugins.'io.containerd.cri.v1.images']
snapshotter = 'overlayfs'

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '{config.PAUSE_IMAGE}'

[{runtime}]
disable_apparmor = true
restrict_oom_score_adj = true

[{runtime}.containerd]
default_runtime_name = 'crun'

[{runtime}.containerd.runtimes.crun]
runtime_type = 'io.containerd.runc.v2'

[{runtime}.containerd.runtimes.crun.options]
BinaryName = '{directory}/crun'
SystemdCgroup = false

[{runtime}.cni]
bin_dirs = ['/usr/lib/cni']
conf_dir = '{directory}/cni.d'
"""


def cni_config(node: str) -> dict[str, Any]:
    """Pod network: point-to-point links, so that translation of Service addresses works within a node as well."""
    ipam = {
        "type": "host-local",
        "dataDir": "/run/cni",
        "ranges": [[{"subnet": config.pod_cidr(node)}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipMasq": False, "ipam": ipam}]}


def kubelet_config(plan: NodePlan) -> dict[str, Any]:
    """KubeletConfiguration: quick reports, evictions by the node's real memory, images never collected."""
    settings, pki = plan.settings, plan.pki
    document: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": "/",
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "address": config.node_ip(plan.name),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": f"{pki}/ca.crt"},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "tlsCertFile": f"{pki}/{plan.name}.crt",
        "tlsPrivateKeyFile": f"{pki}/{plan.name}.key",
        "clusterDomain": config.CLUSTER_DOMAIN,
        "clusterDNS": [config.CONTROL_PLANE_IP],
        "resolvConf": f"{plan.directory}/resolv.conf",
        "nodeStatusUpdateFrequency": "1s",
        "nodeStatusReportFrequency": "10s",
        "nodeLeaseDurationSeconds": 4,
        "syncFrequency": "10s",
        "fileCheckFrequency": "0s",
        "httpCheckFrequency": "0s",
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "evictionPressureTransitionPeriod": "10s",
        # Without it memory pressure is noticed at a 10 s poll, long after the kernel's OOM killer.
        "kernelMemcgNotification": bool(plan.hierarchies),
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "imageMinimumGCAge": "24h",
        "serializeImagePulls": False,
        "registryPullQPS": 0,
        "eventRecordQPS": 0,
        "kubeAPIQPS": 100,
        "kubeAPIBurst": 200,
        "maxPods": 110,
        "featureGates": settings.feature_gates,
    }
    if settings.node_cpu:
        document["systemReserved"] = {"cpu": str(plan.machine_cores - settings.node_cpu)}
    return document


def kube_proxy_config(node: str, pki: Path) -> dict[str, Any]:
    """KubeProxyConfiguration. Connection tracking limits stay untouched: a network namespace may not set them."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": f"{pki}/proxy.kubeconfig"},
        "hostnameOverride": node,
        "bindAddress": config.node_ip(node),
        "clusterCIDR": config.POD_NETWORK,
        "detectLocalMode": "ClusterCIDR",
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
    }
