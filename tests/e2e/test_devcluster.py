"""The embedded cluster itself: what jobs rely on (pods, names, volumes, failures of nodes) and that it leaves nothing.

Pods need no image but the sandbox's: they run the host's python, mounted read-only.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from devcluster import paths, state
from devcluster.cluster import Cluster
from devcluster.kubeapi import ApiError
from devcluster.pytest_plugin import session_cluster
from devcluster.space import wait_for

HOST_DIRECTORIES = ("/usr", "/lib", "/lib64")
SERVE_OWN_NAME = """
import http.server, socket
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = socket.gethostname().encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"""
SLEEP = "import time; time.sleep(3600)"


@pytest.fixture(scope="module")
def machines():
    """Three nodes with accelerators, for tests that end with every node on and connected."""
    with session_cluster("devcluster-tests", nodes=3, accelerators={"nvidia.com/gpu": 2}) as cluster:
        yield cluster


@pytest.fixture
def namespace(machines, request):
    """A namespace of the test's own, gone (with its pods) at the end."""
    name = request.node.name.replace("_", "-")[:60].strip("-")
    machines.api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    machines.wait(lambda: machines.api.get(f"/api/v1/namespaces/{name}/serviceaccounts/default"), 20, "account")
    yield name
    machines.api.text(f"/api/v1/namespaces/{name}", "DELETE")


def pod(name, code, **spec):
    """A pod that runs `code` with the host's python; `spec` adds to the pod's spec."""
    volumes = [{"name": f"host{i}", "hostPath": {"path": path}} for i, path in enumerate(HOST_DIRECTORIES)]
    mounts = [{"name": f"host{i}", "mountPath": path, "readOnly": True} for i, path in enumerate(HOST_DIRECTORIES)]
    resources = spec.pop("resources", {})
    container = {
        "name": "main",
        "image": "localhost/pause:1",
        "command": ["/usr/bin/python3", "-c", code],
        "volumeMounts": mounts,
        "resources": resources,
    }
    return {
        "metadata": {"name": name, "labels": {"app": "test", "pod": name}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [container], "volumes": volumes, **spec},
    }


def create(cluster, namespace, *pods):
    for body in pods:
        cluster.api.create(f"/api/v1/namespaces/{namespace}/pods", body)


def get(cluster, namespace, name):
    return cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/{name}")


def is_ready(cluster, namespace, name):
    conditions = get(cluster, namespace, name)["status"].get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def wait_ready(cluster, namespace, *names):
    for name in names:
        cluster.wait(lambda name=name: is_ready(cluster, namespace, name), 30, f"pod {name} to be Ready")


def kubectl(cluster, *arguments):
    command = [cluster.kubectl, "--kubeconfig", cluster.kubeconfig, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_pods_on_all_nodes_answer_under_one_service_name(machines, namespace):
    """A name resolves in a pod, and its Service spreads connections over pods of every node, the caller's included."""
    service = {
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "test"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    machines.api.create(f"/api/v1/namespaces/{namespace}/services", service)
    create(
        machines, namespace, *(pod(f"on-{node.name}", SERVE_OWN_NAME, nodeName=node.name) for node in machines.nodes)
    )
    wait_ready(machines, namespace, "on-n1", "on-n2", "on-n3")
    ask = f"""
import time, urllib.request
seen, deadline = set(), time.monotonic() + 20
while len(seen) < 3 and time.monotonic() < deadline:
    try: seen.add(urllib.request.urlopen("http://web.{namespace}.svc.cluster.local/", timeout=2).read().decode())
    except OSError: time.sleep(0.1)
print(*sorted(seen))
"""
    answered = kubectl(machines, "-n", namespace, "exec", "on-n1", "--", "/usr/bin/python3", "-c", ask)
    assert answered.split() == ["on-n1", "on-n2", "on-n3"]


def test_accelerators_are_handed_out_until_none_is_left(machines, namespace):
    """Three nodes with two accelerators each take three pods of two; the fourth waits and says for what."""
    two = {"limits": {"nvidia.com/gpu": "2"}}
    create(machines, namespace, *(pod(f"gpu-{i}", SLEEP, resources=two) for i in range(4)))

    def scheduled():
        return [get(machines, namespace, f"gpu-{i}")["spec"].get("nodeName") for i in range(4)]

    def refusals():
        items = machines.api.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
        conditions = [condition for item in items for condition in item["status"].get("conditions", [])]
        return [c["message"] for c in conditions if c["type"] == "PodScheduled" and c["status"] == "False"]

    machines.wait(lambda: len(set(filter(None, scheduled()))) == 3, 20, "three pods to be placed")
    machines.wait(refusals, 10, "the fourth to be refused")
    assert len(refusals()) == 1
    assert "Insufficient nvidia.com/gpu" in refusals()[0]


def test_restricted_pods_share_a_volume_with_the_host(machines, namespace):
    """Under the restricted standard, user 65532 writes to a shared volume, with a seccomp filter in force."""
    label = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    machines.api.patch(f"/api/v1/namespaces/{namespace}", label)
    claim = {
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    machines.api.create(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims", claim)
    path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/data"
    machines.wait(lambda: machines.api.get(path)["status"]["phase"] == "Bound", 20, "the claim to be bound")
    volume = machines.shared / machines.api.get(path)["spec"]["volumeName"]
    # A shell that needs no image: the dynamic loader starts it from the volume itself.
    for file in ("/bin/sh", "/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6"):
        subprocess.run(["cp", "-L", file, volume], check=True)
    with pytest.raises(ApiError, match="violates PodSecurity"):
        create(machines, namespace, pod("privileged", SLEEP))
    code = "while read -r key value; do case $key in Seccomp:|Uid:) echo $key $value;; esac; done </proc/self/status"
    loader = ["/data/ld-linux-x86-64.so.2", "--library-path", "/data", "/data/sh", "-c", f"{code} >/data/out"]
    body = pod(
        "writer", "", restartPolicy="Never", volumes=[{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]
    )
    body["spec"]["securityContext"] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    body["spec"]["containers"][0] |= {
        "command": loader,
        "volumeMounts": [{"name": "d", "mountPath": "/data"}],
        "securityContext": {"runAsUser": 65532, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    create(machines, namespace, body)
    machines.wait(
        lambda: get(machines, namespace, "writer")["status"]["phase"] == "Succeeded", 20, "the writer to finish"
    )
    assert (volume / "out").read_text().splitlines() == ["Uid: 65532 65532 65532 65532", "Seccomp: 2"]


def test_a_node_without_power_is_noticed_and_comes_back_whole(machines, namespace):
    """Its processes die at once, Kubernetes notices within seconds; after power on it is a rebooted, usable node."""
    create(machines, namespace, pod("victim", SLEEP, nodeName="n2"))
    wait_ready(machines, namespace, "victim")
    boot = machines.api.get("/api/v1/nodes/n2")["status"]["nodeInfo"]["bootID"]
    node = machines.node("n2")
    node.off()
    assert not node.machine.is_on
    machines.wait(lambda: "n2" not in machines.api.ready_nodes(), 20, "n2 to be noticed")
    machines.wait(lambda: "deletionTimestamp" in get(machines, namespace, "victim")["metadata"], 20, "eviction")
    node.on()
    status = machines.api.get("/api/v1/nodes/n2")["status"]
    assert status["nodeInfo"]["bootID"] != boot
    assert status["allocatable"]["nvidia.com/gpu"] == "2"
    here = {"kubernetes.io/hostname": "n2"}
    create(machines, namespace, pod("next", SLEEP, nodeSelector=here, resources={"limits": {"nvidia.com/gpu": "2"}}))
    wait_ready(machines, namespace, "next")


def test_a_partition_ends_no_container(machines, namespace):
    """Cut off, a node turns NotReady while its pods run on; healed, it is Ready and they were never restarted."""
    forever = [{"operator": "Exists", "effect": "NoExecute"}]
    create(machines, namespace, pod("survivor", SLEEP, nodeName="n3", tolerations=forever))
    wait_ready(machines, namespace, "survivor")
    before = get(machines, namespace, "survivor")["status"]["containerStatuses"][0]
    node = machines.node("n3")
    node.partition()
    machines.wait(lambda: "n3" not in machines.api.ready_nodes(), 20, "n3 to be noticed")
    node.heal()
    wait_ready(machines, namespace, "survivor")
    after = get(machines, namespace, "survivor")["status"]["containerStatuses"][0]
    assert (after["containerID"], after["restartCount"]) == (before["containerID"], 0)


def test_two_clusters_live_side_by_side(machines):
    """A second cluster with the same addresses has its own objects, and its end does not touch the first."""
    with session_cluster("devcluster-beside", nodes=1) as other:
        assert other.api.ready_nodes() == {"n1"}
        assert machines.api.ready_nodes() == {"n1", "n2", "n3"}
        other.node("n1").off()
        assert machines.node("n1").machine.is_on
    assert machines.api.ready_nodes() == {"n1", "n2", "n3"}


def test_a_name_in_use_is_refused_and_its_cluster_left_alone(machines):
    """Neither a second start nor a stop from elsewhere disturbs a cluster that a living process holds."""
    name = machines.settings.name
    for command in (["up", "--name", name], ["down", "--name", name]):
        done = devcluster(*command)
        assert done.returncode == 1
        assert "in use by another process" in done.stderr
    assert machines.api.ready_nodes() == {"n1", "n2", "n3"}


# ---- what crashes leave


def devcluster(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "devcluster", *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def traces(name, tops):
    """Everything of a cluster that can be seen on the machine, its files apart."""
    directory = str(paths.cluster_dir(name))
    commands = [(file.parent.name, command_line(file)) for file in Path("/proc").glob("[0-9]*/cmdline")]
    return {
        "processes": [pid for pid, command in commands if f"{directory}/" in command],
        "groups": [top for top in tops if Path(top).exists()],
        "mounts": [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{directory}/" in line],
        "network namespaces": [path.name for path in Path("/run/netns").glob("n[0-9]*")],
        "shared memory": [path.name for path in Path("/dev/shm").glob("*etcd*")],
        "state": [file for file in ("state.json", "nodes", "pki", "run") if Path(directory, file).exists()],
    }


def command_line(file):
    try:
        return file.read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def kill_start(name, moment):
    """SIGKILL `up` of a one-node cluster as soon as `moment` holds for its directory; fails if it ends before."""
    devcluster("down", "--name", name)
    command = [sys.executable, "-m", "devcluster", "up", "--name", name, "--nodes", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: moment(paths.cluster_dir(name)) or process.poll() is not None, 90, "the moment")
        assert process.poll() is None, process.stderr.read()
    finally:
        process.kill()
        process.communicate()


NOTHING = {key: [] for key in ("processes", "groups", "mounts", "network namespaces", "shared memory", "state")}


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(lambda cluster: (cluster / "state.json").exists(), id="recorded"),
        pytest.param(lambda cluster: (cluster / "run/init.pid").exists(), id="namespaces"),
        pytest.param(lambda cluster: (cluster / "nodes/n1/init.pid").exists(), id="node-booted"),
        pytest.param(lambda cluster: (cluster / "nodes/n1/kubelet.pid").exists(), id="kubelet-started"),
    ],
)
def test_a_start_that_is_killed_midway_leaves_nothing_behind(moment):
    """Wherever SIGKILL hits `up`, `down` finds everything that was made, although nobody was told of it."""
    name = "devcluster-killed"
    kill_start(name, moment)
    tops = state.read(paths.cluster_dir(name)).groups.tops.values()
    assert devcluster("down", "--name", name).returncode == 0
    assert traces(name, tops) == NOTHING


def test_up_replaces_what_a_killed_start_left():
    """The next `up` of the name works, as if nothing had happened, and nothing of the killed one lives on."""
    name = "devcluster-again"
    kill_start(name, lambda cluster: (cluster / "nodes/n1/kubelet.pid").exists())
    left = state.read(paths.cluster_dir(name)).init
    assert left.alive()
    try:
        assert devcluster("up", "--name", name, "--nodes", "1").returncode == 0
        assert not left.alive()
        cluster = Cluster.attach(name)
        assert cluster.api.ready_nodes() == {"n1"}
        tops = state.read(cluster.directory).groups.tops.values()
    finally:
        assert devcluster("down", "--name", name).returncode == 0
    assert traces(name, tops) == NOTHING


OWNER = """
import sys, time
from devcluster.cluster import Cluster
with Cluster(sys.argv[1], nodes=0):
    print("up", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("victim", ["owner", "parent-of-all"])
def test_a_cluster_dies_with_what_carries_it(victim):
    """SIGKILL of the owning process, or of the parent of all cluster processes, ends every one of them."""
    name = f"devcluster-{victim}"
    owner = subprocess.Popen([sys.executable, "-c", OWNER, name], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout.readline() == "up\n"
        record = state.read(paths.cluster_dir(name))
        assert len(record.groups.members()) > 4
        parent = int(Path(f"/proc/{record.init.pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(owner.pid if victim == "owner" else parent, signal.SIGKILL)
        wait_for(lambda: not record.groups.members(), 5, "the cluster's processes to end")
    finally:
        owner.kill()
        owner.wait()
    assert devcluster("down", "--name", name).returncode == 0
    assert traces(name, record.groups.tops.values()) == NOTHING


def test_status_names_clusters_and_nodes(machines):
    """`status` shows a running cluster with each node's power and readiness."""
    shown = devcluster("status").stdout
    block = shown[shown.index(f"{machines.settings.name}: API server ready") :]
    assert "n3 10.250.0.13: on, Ready" in block


def test_a_program_runs_on_a_node(machines):
    """`exec` leads into the node's own namespaces."""
    assert machines.node("n2").run(["hostname"]) == "n2\n"
    assert (
        json.loads(machines.node("n2").run(["ip", "-j", "addr", "show", "eth0"]))[0]["addr_info"][0]["local"]
        == "10.250.0.12"
    )
