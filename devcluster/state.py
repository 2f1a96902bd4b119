"""The record of a cluster on disk, written before the first thing is created, so that any crash can be cleaned up.

A process is identified by pid, start time and the machine's boot id: a pid alone may have been reused.
"""

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from devcluster.cgroups import ClusterGroups
from devcluster.config import ClusterConfig
from devcluster.errors import DevclusterError

STARTING, READY = "starting", "ready"


@dataclass(frozen=True)
class ProcessId:
    """A process that cannot be mistaken for a later one with the same pid. `started` is in clock ticks since boot."""

    pid: int
    started: int
    boot: str

    @staticmethod
    def of(pid: int) -> "ProcessId":
        """Identity of a living process; ProcessLookupError if there is none."""
        started = _start_time(pid)
        if started is None:
            raise ProcessLookupError(pid)
        return ProcessId(pid, started, _boot_id())

    def alive(self) -> bool:
        """Whether exactly this process still runs (a zombie does not)."""
        return self.boot == _boot_id() and _start_time(self.pid) == self.started


@dataclass(frozen=True)
class ClusterState:
    """What later commands need to know.

    `path` is the PATH with the binaries that it was started with. `init` is pid 1 of the cluster, None until it runs.
    `owner` is the process that an ephemeral cluster is tied to.
    """

    config: ClusterConfig
    groups: ClusterGroups
    gate_port: int
    path: str
    phase: str = STARTING
    init: ProcessId | None = None
    owner: ProcessId | None = None

    def running(self) -> bool:
        """Whether the cluster came up completely, is still there, and so is the process that it is tied to."""
        owned = self.owner is None or self.owner.alive()
        return self.phase == READY and self.init is not None and self.init.alive() and owned

    def write(self, directory: Path) -> None:
        """Replace the record in one step."""
        document = {**asdict(self), "config": self.config.to_json()}
        scratch = directory / "state.json.new"
        scratch.write_text(json.dumps(document, indent=1))
        scratch.rename(directory / "state.json")


def read(directory: Path) -> ClusterState | None:
    """The record in `directory`, None if there is none; DevclusterError if it cannot be understood."""
    try:
        document = json.loads((directory / "state.json").read_text())
        return ClusterState(
            config=ClusterConfig.from_json(document["config"]),
            groups=ClusterGroups(document["groups"]["tops"]),
            gate_port=document["gate_port"],
            path=document["path"],
            phase=document["phase"],
            init=_process(document["init"]),
            owner=_process(document["owner"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DevclusterError(
            f"{directory}/state.json is unreadable ({error!r}): written by another version? "
            "Stop that cluster with the version that started it, or end its processes by hand and delete the directory"
        ) from error


def _process(value: dict[str, Any] | None) -> ProcessId | None:
    return None if value is None else ProcessId(**value)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _start_time(pid: int) -> int | None:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    return None


def own_process() -> ProcessId:
    """Identity of this process."""
    return ProcessId.of(os.getpid())
