"""Control groups of a cluster: one group per cluster, in it one for the control plane (`cp`) and one per node.

A cluster's groups are children of the group that ran `up`, so its use stays inside that account; their paths are fixed
before anything is created, and every process of the cluster is born inside them. So they answer for certain which
processes belong to the cluster, whatever else was lost. cgroup v1 in any arrangement of hierarchies, the hybrid
arrangement, and v2; v2 was written with care but has not been run.
"""

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from devcluster.errors import DevclusterError

_V2_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "pids")


@dataclass(frozen=True)
class Hierarchy:
    """One mounted cgroup hierarchy. `controllers` is "memory", "cpu,cpuacct", "name=systemd", or "" for v2."""

    controllers: str
    mount_point: str
    own: str

    @property
    def is_v2(self) -> bool:
        """Whether this is the unified hierarchy."""
        return self.controllers == ""


def parse_hierarchies(mountinfo: str, own_cgroup: str) -> list[Hierarchy]:
    """The hierarchies of a process from the text of /proc/PID/mountinfo and /proc/PID/cgroup.

    `own` is the directory of the process's group; a hierarchy that is not mounted is left out.
    """
    mounts: dict[frozenset[str], tuple[str, str]] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(), after.split()[:3]
        if kind in ("cgroup", "cgroup2"):
            known = frozenset(options.split(",")) if kind == "cgroup" else frozenset([""])
            mounts.setdefault(known, (fields[4], fields[3]))
    found = []
    for line in own_cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        wanted = frozenset(controllers.split(","))
        for known, (mount_point, root) in mounts.items():
            if wanted <= known:
                below = path.removeprefix(root.rstrip("/")).strip("/")
                found.append(Hierarchy(controllers, mount_point, f"{mount_point}/{below}".rstrip("/")))
                break
    return found


def current_hierarchies() -> list[Hierarchy]:
    """Hierarchies of this process."""
    found = parse_hierarchies(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    if not found:
        raise DevclusterError("no cgroup hierarchy is mounted: mount /sys/fs/cgroup (in a container: --privileged)")
    return found


@dataclass(frozen=True)
class ClusterGroups:
    """The groups of one cluster: a top directory per hierarchy, keyed by its controllers."""

    tops: dict[str, str]

    @staticmethod
    def plan(name: str, hierarchies: list[Hierarchy]) -> "ClusterGroups":
        """Where the groups will be; creates nothing.

        On v2 alone they go below the hierarchy's root: a group with processes of its own may not pass controllers on.
        """
        only_v2 = all(hierarchy.is_v2 for hierarchy in hierarchies)
        return ClusterGroups(
            {
                hierarchy.controllers: f"{hierarchy.mount_point if only_v2 else hierarchy.own}/llmtrain-{name}"
                for hierarchy in hierarchies
            }
        )

    @property
    def is_v2(self) -> bool:
        """Whether the kubelets will see cgroup v2."""
        return list(self.tops) == [""]

    def directories(self, part: str) -> list[Path]:
        """The group of `part` ("cp" or a node) in every hierarchy."""
        return [Path(top) / part for top in self.tops.values()]

    def entry(self, part: str) -> list[Path]:
        """Where a further process of a running node enters: on v2 its processes live in the leaf `init`."""
        return [
            directory / "init" if self.is_v2 and part != "cp" else directory for directory in self.directories(part)
        ]

    def create(self, part: str, memory_bytes: int = 0) -> None:
        """Make the group of `part`, limited to `memory_bytes` (0: unlimited)."""
        if self.is_v2:
            self._create_v2(part, memory_bytes)
            return
        for controllers, top in self.tops.items():
            for directory in (Path(top), Path(top) / part):
                directory.mkdir(exist_ok=True)
                if "cpuset" in controllers.split(","):
                    for file in ("cpuset.cpus", "cpuset.mems"):
                        (directory / file).write_text((directory.parent / file).read_text())
            if "memory" in controllers.split(",") and memory_bytes:
                (Path(top) / part / "memory.limit_in_bytes").write_text(str(memory_bytes))

    def _create_v2(self, part: str, memory_bytes: int) -> None:
        top = Path(self.tops[""])
        top.mkdir(exist_ok=True)
        for directory in (top.parent, top):
            offered = (directory / "cgroup.controllers").read_text().split()
            wanted = " ".join(f"+{name}" for name in _V2_CONTROLLERS if name in offered)
            try:
                (directory / "cgroup.subtree_control").write_text(wanted)
            except OSError as error:
                raise DevclusterError(
                    f"{directory}/cgroup.subtree_control: cannot pass {wanted} on ({error.strerror}); "
                    "run on the machine itself or in a container with a cgroup root of its own"
                ) from error
        (top / part).mkdir(exist_ok=True)
        if memory_bytes:
            (top / part / "memory.max").write_text(str(memory_bytes))

    def members(self, part: str = "") -> set[int]:
        """Process ids inside the cluster's groups (or only those of `part`), including groups made by a kubelet."""
        found: set[int] = set()
        for top in self.directories(part):
            for file in top.rglob("cgroup.procs"):
                with contextlib.suppress(OSError):
                    found.update(int(line) for line in file.read_text().split())
        return found - {0}

    def kill(self, seconds: float = 15) -> None:
        """SIGKILL every member until none is left."""
        deadline = time.monotonic() + seconds
        while (members := self.members()) and time.monotonic() < deadline:
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        if members:
            raise DevclusterError(f"processes {sorted(members)} of the cluster do not die (uninterruptible I/O?)")

    def remove(self, part: str = "", seconds: float = 10) -> None:
        """Remove the groups (or only those of `part`), deepest first; their processes must be dead or dying."""
        deadline = time.monotonic() + seconds
        for top in self.directories(part):
            while not _remove_tree(top):
                if time.monotonic() > deadline:
                    raise DevclusterError(f"cgroup {top} cannot be removed: it still has processes")
                time.sleep(0.01)


def _remove_tree(top: Path) -> bool:
    for directory, _, _ in os.walk(top, topdown=False):
        with contextlib.suppress(OSError):
            Path(directory).rmdir()
    return not top.exists()
