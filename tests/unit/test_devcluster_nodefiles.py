"""The files of a node: a boot script that a shell accepts, and configurations that follow the settings."""

import json
import subprocess
import tomllib
from pathlib import Path

import pytest

from devcluster import network, nodefiles
from devcluster.config import ClusterConfig

V1 = ("cpu,cpuacct", "memory", "name=systemd", "")


def plan(hierarchies=V1, **settings):
    return nodefiles.NodePlan(
        name="n2",
        settings=ClusterConfig(**settings),
        directory=Path("/cache/clusters/dev/nodes/n2"),
        pki=Path("/cache/clusters/dev/pki"),
        hierarchies=hierarchies,
        machine_cores=8,
    )


@pytest.mark.parametrize("hierarchies", [V1, ()], ids=["v1", "v2"])
def test_scripts_are_valid_shell(hierarchies):
    """The boot script, the runtime wrapper and the network script parse."""
    files = nodefiles.render(plan(hierarchies))
    for script in (files["init.sh"], files["crun"], network.setup_script(["n1", "n2"])):
        subprocess.run(["sh", "-n"], input=script, text=True, check=True)


def test_the_boot_script_learns_its_pid_before_it_hides_the_clusters_proc():
    """The pid must be the one that the cluster sees."""
    lines = nodefiles.boot_script(plan()).splitlines()
    assert lines.index("read -r pid rest </proc/self/stat") < lines.index("mount -t proc proc /proc")


def test_v1_hierarchies_are_mounted_as_on_the_host():
    """Co-mounted controllers stay together and get their single names; named hierarchies are mounted by name."""
    script = nodefiles.boot_script(plan())
    assert "mount -t cgroup -o cpu,cpuacct cgroup /sys/fs/cgroup/cpu,cpuacct" in script
    assert "ln -s cpu,cpuacct /sys/fs/cgroup/cpuacct" in script
    assert "mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd" in script


def test_the_kubelet_reserves_the_cores_that_the_node_does_not_offer():
    """A node of 3 on a machine of 8 reserves 5."""
    assert nodefiles.kubelet_config(plan(node_cpu=3))["systemReserved"] == {"cpu": "5"}
    assert "systemReserved" not in nodefiles.kubelet_config(plan())


def test_meminfo_shows_the_nodes_memory():
    """Total, free and available become the node's; the rest stays."""
    host = "MemTotal:  24000000 kB\nMemFree: 9 kB\nMemAvailable: 8 kB\nBuffers: 7 kB\n"
    shown = nodefiles.meminfo(host, 2 << 30)
    assert shown == "MemTotal: 2097152 kB\nMemFree: 2097152 kB\nMemAvailable: 2097152 kB\nBuffers: 7 kB\n"


def test_configurations_parse_and_name_the_nodes_own_paths():
    """containerd runs this node's wrapper and hands pods this node's addresses."""
    files = nodefiles.render(plan())
    runtime = tomllib.loads(files["containerd.toml"])["plugins"]["io.containerd.cri.v1.runtime"]
    options = runtime["containerd"]["runtimes"]["crun"]["options"]
    assert options == {"BinaryName": "/cache/clusters/dev/nodes/n2/crun", "SystemdCgroup": False}
    pods = json.loads(files["cni.d/10-pods.conflist"])["plugins"][0]["ipam"]["ranges"]
    assert pods == [[{"subnet": "10.251.2.0/24"}]]
