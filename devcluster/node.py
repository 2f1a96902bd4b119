"""One node of a running cluster: a machine made of namespaces, that can be switched off and on and cut off.

Its disk (kubelet, containerd, logs) is a directory that survives a power cycle; its memory, /run and processes do not.
Switching off is SIGKILL of its pid 1: the kernel ends every process of the machine at once, as a power cut would.
"""

import os
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from devcluster import config, network, nodefiles
from devcluster.cgroups import ClusterGroups
from devcluster.config import ClusterConfig
from devcluster.errors import DevclusterError
from devcluster.space import Space, wait_for


class Node:
    """A handle on one node; holds no state of its own, so several may be used side by side, but not in two threads."""

    def __init__(
        self, name: str, settings: ClusterConfig, cluster_dir: Path, space: Space, groups: ClusterGroups
    ) -> None:
        """`cluster_dir` is the cluster's run directory; the node's own is `nodes/NAME` in it."""
        self.name = name
        self.ip = config.node_ip(name)
        self.dir = cluster_dir / "nodes" / name
        self._cluster_dir = cluster_dir
        self._settings, self._space, self._groups = settings, space, groups

    @property
    def layer_mounts(self) -> Path:
        """File of `SOURCE TARGET` lines that are bind-mounted read-only at each boot, before containerd starts."""
        return self.dir / nodefiles.LAYER_MOUNTS

    @property
    def root(self) -> Path:
        """The root directory as processes on it see it, reachable from outside; not there while the node is off."""
        return self._space.root / "proc" / str(self._pid()) / "root"

    @property
    def is_on(self) -> bool:
        """Whether the node's pid 1 runs."""
        pid = self._pid()
        return pid is not None and (self._space.root / "proc" / pid).exists()

    @property
    def enter(self) -> list[str]:
        """Command prefix that runs a program on the node; DevclusterError if it is switched off."""
        if not self.is_on:
            raise DevclusterError(f"node {self.name} is off; `node on {self.name}` starts it")
        return [*self._space.enter, "nsenter", "-t", str(self._pid()), "-m", "-p", "-n", "-u", "-i", "-C", "--"]

    def run(self, argv: list[str]) -> str:
        """Run a command on the node to its end and return its standard output; DevclusterError if it fails."""
        return self._space.run(argv, self.enter)

    def prepare(self) -> None:
        """Write the node's files; a disk that is already there is kept."""
        for part in nodefiles.DISK:
            (self.dir / part).mkdir(parents=True, exist_ok=True)
        plan = nodefiles.NodePlan(
            name=self.name,
            settings=self._settings,
            directory=self.dir,
            pki=self._cluster_dir / "pki",
            hierarchies=() if self._groups.is_v2 else tuple(self._groups.tops),
            machine_cores=os.cpu_count() or 1,
        )
        for path, text in nodefiles.render(plan).items():
            (self.dir / path).parent.mkdir(exist_ok=True)
            (self.dir / path).write_text(text)
        (self.dir / "crun").chmod(0o755)

    def boot(self) -> None:
        """Power on up to a containerd that answers. The cable is as it was."""
        memory = config.quantity_bytes(self._settings.node_memory) if self._settings.node_memory else 0
        if memory:
            text = nodefiles.meminfo(Path("/proc/meminfo").read_text(), memory)
            (self.dir / "meminfo").write_text(text)
        self._groups.create(self.name, memory)
        pid_file, log = self.dir / "init.pid", self._log("init")
        pid_file.unlink(missing_ok=True)
        unshare = ["unshare", "-m", "-p", "-u", "-i", "-C", "--propagation", "private", "--fork", "--kill-child"]
        self._space.spawn(
            ["nsenter", f"--net=/run/netns/{self.name}", *unshare, "sh", str(self.dir / "init.sh")],
            groups=self._groups.directories(self.name),
            log=log,
            pid_file=self.dir / "unshare.pid",
        )
        wait_for(lambda: self._booted(log), 30, f"{self.name} to boot")
        if self._groups.is_v2:
            wait_for(lambda: all(path.is_dir() for path in self._groups.entry(self.name)), 5, "the node's leaf group")
        self.start("containerd", ["containerd", "-c", str(self.dir / "containerd.toml"), "-l", "info"])
        wait_for(self._containerd_answers, 40, f"containerd on {self.name}", interval=0.02)

    def start_kubernetes(self) -> None:
        """Start kubelet and kube-proxy; containerd must answer."""
        self.start(
            "kubelet",
            [
                "kubelet",
                f"--config={self.dir / 'kubelet.json'}",
                f"--kubeconfig={self._cluster_dir / 'pki' / self.name}.kubeconfig",
                f"--hostname-override={self.name}",
                f"--node-ip={self.ip}",
                "--v=2",
            ],
        )
        self.start("kube-proxy", ["kube-proxy", f"--config={self.dir / 'kube-proxy.json'}", "--v=1"])

    def start(self, service: str, argv: list[str]) -> None:
        """Start a service of the node; its log and pid file are named after it."""
        self._space.spawn(
            argv,
            prefix=self.enter,
            groups=self._groups.entry(self.name),
            log=self._log(service),
            pid_file=self.dir / f"{service}.pid",
        )

    def check_alive(self, service: str) -> None:
        """DevclusterError with the end of its log if a service of this node, that is on, has ended."""
        pid = (self.dir / f"{service}.pid").read_text().strip()
        if not (self.root / "proc" / pid).exists():
            log = self._log(service)
            raise DevclusterError(f"{service} on {self.name} ended; the end of {log}:\n{log.read_text()[-2000:]}")

    def power_off(self) -> None:
        """Cut the power: every process dies now, the disk stays. Does nothing to a node that is off."""
        # First the cable: a machine without power does not close its connections either.
        self.set_link(up=False)
        pid = self._pid()
        if pid is not None and self.is_on:
            self._space.run(["kill", "-KILL", pid])
            wait_for(lambda: not self._processes_left(), 15, f"the processes of {self.name} to end")
        (self.dir / "init.pid").unlink(missing_ok=True)
        self._groups.remove(self.name)
        self._space.run(["sh", "-c", network.forget_pods_script(self.name)])

    def set_link(self, *, up: bool) -> None:
        """Plug the node's cable in or pull it; nothing on the node itself changes."""
        self._space.run(["sh", "-c", network.link_script(self.name, up=up)])

    def set_rate(self, rate: str | None) -> None:
        """Let only so much through the node's cable, such as 10mbit; None: as much as it can."""
        self._space.run(["sh", "-c", network.rate_script(self.name, rate)])

    def kill_pod(self, uid: str) -> None:
        """SIGKILL to every process of a pod on this node, so that it says no goodbye."""
        groups = self.run(["sh", "-c", f"grep -ls 'pod{uid}' /proc/[0-9]*/cgroup || true"]).split()
        pids = " ".join(group.split("/")[2] for group in groups)
        self.run(["sh", "-c", f"kill -9 {pids} 2> /dev/null || true"])  # one may end while it is looked for

    def _processes_left(self) -> bool:
        for pid in self._groups.members(self.name):
            # Not in the dead pid namespace but in the group: the launchers outside it. They are ours to end too.
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return bool(self._groups.members(self.name))

    def _booted(self, log: Path) -> bool:
        if (self.dir / "init.pid").exists():
            return True
        pid = (self.dir / "unshare.pid").read_text().strip()
        if pid and not (self._space.root / "proc" / pid).exists():
            raise DevclusterError(f"{self.name} did not boot; the end of {log}:\n{log.read_text()[-2000:]}")
        return False

    def _containerd_answers(self) -> bool:
        # Through /proc/PID/root: the socket lies in the node's own /run.
        path = self.root / "run/containerd/containerd.sock"
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(path))
            except OSError:
                return False
        return True

    def _pid(self) -> str | None:
        try:
            return (self.dir / "init.pid").read_text().strip()
        except FileNotFoundError:
            return None

    def _log(self, service: str) -> Path:
        return self._cluster_dir / "log" / f"{self.name}.{service}.log"


def in_parallel(nodes: list[Node], action: Callable[[Node], object]) -> None:
    """Run `action` on every node at once and wait for all; the first error is raised after that."""
    if not nodes:
        return
    with ThreadPoolExecutor(len(nodes)) as pool:
        for outcome in [pool.submit(action, node) for node in nodes]:
            outcome.result()
