"""Starting, finding and stopping clusters: the package's Python API.

    with Cluster("demo", nodes=3) as cluster:
        subprocess.run([cluster.kubectl, "--kubeconfig", cluster.kubeconfig, "get", "nodes"])
        cluster.node("n2").off()

Guarantees: the state file is written before anything is created, so the next `up` (or `down`) of the same name finds
and removes whatever a crash left; only processes are killed that are proven to be the cluster's own (its recorded pid 1
with its start time, and members of its control groups); while a cluster starts, and as long as the owner of an
ephemeral one lives, a lock keeps others of the same name away.
"""

import contextlib
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from devcluster import binaries, config, controlplane, images, locks, network, paths, pki, preflight, state
from devcluster.cgroups import ClusterGroups, current_hierarchies
from devcluster.config import ClusterConfig
from devcluster.errors import DevclusterError
from devcluster.kubeapi import KubeApi
from devcluster.node import Node, in_parallel
from devcluster.space import Space, create, destroy, wait_for
from devcluster.state import ClusterState

READY_SECONDS = 90


class BusyError(DevclusterError):
    """A cluster of that name is in use by a living process; take another name or wait."""


def _silent(_: str) -> None:
    """Say nothing."""


@dataclass
class Cluster:
    """A cluster by its name. Constructing it touches nothing; `up` starts it, `attach` finds a running one."""

    settings: ClusterConfig
    say: Callable[[str], None]

    def __init__(self, name: str = "dev", say: Callable[[str], None] = _silent, **settings: Any) -> None:
        """`settings` are fields of ClusterConfig; progress lines go to `say`."""
        self.settings = ClusterConfig(name=name, **settings)
        self.say = say
        self.directory = paths.cluster_dir(name)
        self.api_url_in_netns = f"https://{config.CONTROL_PLANE_IP}:{config.API_PORT}"
        self._binaries: binaries.Binaries | None = None
        self._space: Space | None = None
        self._state: ClusterState | None = None
        self._api: KubeApi | None = None
        self._held: IO[str] | None = None

    @classmethod
    def attach(cls, name: str, say: Callable[[str], None] = _silent) -> Self:
        """A handle on a cluster that runs; DevclusterError if there is none of that name."""
        cluster = cls(name, say)
        found = state.read(cluster.directory)
        if found is None or not found.running() or found.init is None:
            raise DevclusterError(f"no cluster {name!r} is running; `python -m devcluster up --name {name}` starts one")
        cluster.settings = found.config
        cluster._adopt_state(found, Space(found.init, found.path))
        return cluster

    def __enter__(self) -> Self:
        """Start it, tied to this process: if the process dies, in whatever way, the cluster does too."""
        self.up(ephemeral=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.down()

    @property
    def kubeconfig(self) -> Path:
        """Administrator's kubeconfig for this machine."""
        return self.directory / "pki" / "host.kubeconfig"

    @property
    def kubectl(self) -> Path:
        """kubectl of the cluster's version."""
        return binaries.ensure(self.say).path("kubectl")

    @property
    def shared(self) -> Path:
        """Directory behind the shared volumes: the same path here and on every node."""
        return self.directory / "shared"

    @property
    def api(self) -> KubeApi:
        """Client of the API server, as administrator."""
        if self._api is None:
            raise DevclusterError(f"cluster {self.settings.name!r} is not up")
        return self._api

    @property
    def nodes(self) -> list["ClusterNode"]:
        """All nodes, switched on or not."""
        return [self.node(name) for name in self.settings.node_names]

    def node(self, name: str) -> "ClusterNode":
        """The node `name` (n1, n2, ...)."""
        if name not in self.settings.node_names:
            known = ", ".join(self.settings.node_names) or "it has none"
            raise DevclusterError(f"node {name!r}: cluster {self.settings.name!r} knows {known}")
        return ClusterNode(self, Node(name, self.settings, self.directory, self._running_space, self._groups))

    def enter(self, place: str) -> list[str]:
        """Command prefix that runs a program on a node, or beside the control plane for "cp"."""
        return self._running_space.enter if place == "cp" else self.node(place).machine.enter

    def environment(self) -> dict[str, str]:
        """Environment for programs that are run through `enter`."""
        return self._running_space.environment() | {"KUBECONFIG": str(self.directory / "pki" / "admin.kubeconfig")}

    def up(self, *, ephemeral: bool = False) -> None:
        """Start the cluster and return when its nodes are Ready and its default service account exists.

        What an earlier run of the same name left is removed first. `ephemeral` ties the cluster to the calling thread.
        Raises BusyError if a cluster of that name runs or is being started, DevclusterError if it cannot start; then
        nothing is left running, and the logs stay.
        """
        preflight.check_machine(self.settings.node_cpu)
        preflight.raise_inotify_limit(self.say)
        built = binaries.ensure(self.say)
        self._held = _take_lock(self.settings.name)
        try:
            self._clear()
            try:
                self._start(built, ephemeral=ephemeral)
            except BaseException:
                self._stop()
                raise
        except BaseException:
            self._release()
            raise
        if not ephemeral:
            self._release()

    def down(self) -> None:
        """Stop the cluster and remove every trace but its logs and shared files. Does nothing if there is none."""
        with contextlib.nullcontext() if self._held else _take_lock(self.settings.name):
            self._stop()
        self._release()

    def load_images(self, archives: Sequence[Path] = ()) -> None:
        """Give every node that is on the images that were built since, and those of docker or OCI archives."""

        def load(machine: Node) -> None:
            images.adopt(machine)
            for archive in archives:
                images.load_archive(machine, archive)

        in_parallel([node.machine for node in self.nodes if node.machine.is_on], load)

    def _clear(self) -> None:
        found = state.read(self.directory)
        if found is not None and found.running():
            name = self.settings.name
            raise BusyError(f"cluster {name!r} is already running; `python -m devcluster down --name {name}` stops it")
        self._stop()
        for part in ("log", "shared"):
            shutil.rmtree(self.directory / part, ignore_errors=True)

    def _start(self, built: binaries.Binaries, *, ephemeral: bool) -> None:
        begun = time.monotonic()

        def note(what: str) -> None:
            self.say(f"[{time.monotonic() - begun:5.1f} s] {what}")

        plane = self._start_api(built, ephemeral=ephemeral)
        machines = [node.machine for node in self.nodes]
        in_parallel(machines, _boot_new)
        if machines:
            note(f"{len(machines)} nodes booted")
        plane.wait_ready(self.api)
        note("API server ready")
        plane.start_controllers()
        in_parallel(machines, Node.start_kubernetes)
        for path, body in controlplane.base_objects(self.settings, self.shared):
            self.api.create(path, body)
        if machines:
            plane.start_dns()
            images.ensure_pause()
            in_parallel(machines, images.adopt)
            self.wait_nodes(self.settings.node_names)
        self._wait_service_account()
        self._record(phase=state.READY)
        note("up")

    def _start_api(self, built: binaries.Binaries, *, ephemeral: bool) -> controlplane.ControlPlane:
        """Everything up to a starting API server; each step is on record before it is taken."""
        self._make_directories()
        groups = ClusterGroups.plan(self.settings.name, current_hierarchies())
        with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
            owner = state.own_process() if ephemeral else None
            port = listener.getsockname()[1]
            self._state = ClusterState(self.settings, groups, port, built.search_path, owner=owner)
            self._record()
            groups.create("cp")
            cp_groups = groups.directories("cp")
            space = create(self.settings.name, self.directory, cp_groups, built.search_path, ephemeral=ephemeral)
            self._record(init=space.init)
            pki.create(self.directory / "pki", self.settings.node_names, port, datetime.now(UTC))
            self._adopt_state(self._state, space)
            # Before the API server, which listens on an address of this network.
            space.run(["sh", "-e"], stdin=network.setup_script(self.settings.node_names))
            plane = controlplane.ControlPlane(self.settings, self.directory, space, groups)
            plane.start_api(listener)
        return plane

    def _record(self, **changes: Any) -> None:
        if self._state is not None:
            self._state = replace(self._state, **changes)
            self._state.write(self.directory)

    def wait_nodes(self, names: tuple[str, ...] | list[str], seconds: float = READY_SECONDS) -> None:
        """Wait until these nodes are Ready, untainted and offer their accelerators; a dead kubelet is an error."""
        machines = [self.node(name).machine for name in names]

        def ready() -> bool:
            for machine in machines:
                machine.check_alive("kubelet")
            return self.api.ready_nodes() >= set(names)

        self.wait(ready, seconds, f"{', '.join(names)} to be Ready")
        if self.settings.accelerators:
            for name in names:
                self._advertise(name)

    def _advertise(self, name: str) -> None:
        wanted = {resource: str(count) for resource, count in self.settings.accelerators.items()}
        path = f"/api/v1/nodes/{name}"

        def offered() -> bool:
            status = self.api.get(path)["status"]
            if not wanted.items() <= status["capacity"].items():
                self.api.patch(f"{path}/status", {"status": {"capacity": wanted}})
            return bool(wanted.items() <= status["allocatable"].items())

        self.wait(offered, 20, f"{name} to offer {wanted}")

    def wait(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        """Wait until a condition about the API's objects holds; DevclusterError naming `what` after `seconds`."""
        wait_for(lambda: self.api.has(condition), seconds, what, interval=0.05)

    def _wait_service_account(self) -> None:
        path = "/api/v1/namespaces/default/serviceaccounts"
        self.wait(lambda: self.api.get(path)["items"], 30, "the default service account")

    def _make_directories(self) -> None:
        for part in ("log", "run", "nodes"):
            (self.directory / part).mkdir(parents=True, exist_ok=True)
        for directory in (
            self.shared,
            *(self.shared / controlplane.volume_name(i) for i in range(config.SHARED_VOLUMES)),
        ):
            directory.mkdir()
            directory.chmod(0o777)

    def _stop(self) -> None:
        found = state.read(self.directory)
        if found is not None:
            if found.init is not None:
                destroy(found.init)
            found.groups.kill()
            found.groups.remove()
        self._space = self._state = self._api = None
        for part in ("nodes", "pki", "run"):
            shutil.rmtree(self.directory / part, ignore_errors=True)
        (self.directory / "state.json").unlink(missing_ok=True)

    def _release(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None

    def _adopt_state(self, record: ClusterState, space: Space) -> None:
        self._state, self._space = record, space
        self._api = KubeApi(f"https://127.0.0.1:{record.gate_port}", self.directory / "pki")

    @property
    def _running_space(self) -> Space:
        if self._space is None:
            raise DevclusterError(f"cluster {self.settings.name!r} is not up")
        return self._space

    @property
    def _groups(self) -> ClusterGroups:
        if self._state is None:
            raise DevclusterError(f"cluster {self.settings.name!r} is not up")
        return self._state.groups


class ClusterNode:
    """A node together with the cluster that it belongs to: what a test does to it."""

    def __init__(self, cluster: Cluster, machine: Node) -> None:
        """Bind a machine to its cluster."""
        self._cluster, self.machine = cluster, machine
        self.name, self.ip = machine.name, machine.ip

    def run(self, argv: list[str]) -> str:
        """Run a command on the node and return its standard output."""
        return self.machine.run(argv)

    def off(self) -> None:
        """Cut its power; returns when its processes are dead. Kubernetes notices by itself, later."""
        self.machine.power_off()

    def on(self) -> None:
        """Switch it on again; returns when its kubelet has reported since and the node is Ready.

        A node that was off for less than the grace period never stopped looking Ready, so its lease is what counts.
        """
        if self.machine.is_on:
            return
        begun = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        self.machine.set_link(up=True)
        self.machine.prepare()
        self.machine.boot()
        self.machine.start_kubernetes()
        lease = f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{self.name}"

        def renewed() -> bool:
            return bool(self._cluster.api.get(lease)["spec"]["renewTime"] > begun)

        self._cluster.wait(renewed, READY_SECONDS, f"{self.name} to renew its lease")
        self._cluster.wait_nodes([self.name])

    def partition(self) -> None:
        """Cut its network; everything on it keeps running."""
        self.machine.set_link(up=False)

    def heal(self) -> None:
        """Undo a partition; returns when the node is Ready."""
        self.machine.set_link(up=True)
        self._cluster.wait_nodes([self.name])

    def slow(self, rate: str | None) -> None:
        """Let only so much through its cable, such as 10mbit; None undoes it."""
        self.machine.set_rate(rate)

    def kill_pod(self, uid: str) -> None:
        """Kill all processes of a pod that runs on it, without a word to Kubernetes."""
        self.machine.kill_pod(uid)


def _boot_new(machine: Node) -> None:
    machine.prepare()
    machine.boot()


def names() -> list[str]:
    """Names of the clusters that have a state file."""
    return sorted(file.parent.name for file in paths.clusters_root().glob("*/state.json"))


def in_use(name: str) -> bool:
    """Whether a living process holds the name: it starts or stops the cluster, or owns an ephemeral one."""
    return locks.is_held(_lock_file(name))


def _lock_file(name: str) -> Path:
    return paths.clusters_root() / f"{name}.lock"


def _take_lock(name: str) -> IO[str]:
    file = locks.acquire(_lock_file(name))
    if file is None:
        raise BusyError(f"cluster {name!r} is in use by another process; choose another --name or wait")
    return file
