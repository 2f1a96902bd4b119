"""The cluster's own namespaces, and how processes are started in them.

One process, catatonit as pid 1 of a pid namespace, carries the whole cluster: mounts, network and every process hang on
its namespaces, nodes are namespaces nested inside. When it is killed the kernel removes all of that, so stopping a
cluster is one SIGKILL plus the removal of its (then empty) control groups. Nothing is mounted or named in the host's
namespaces.

A pid file holds a pid as seen in the pid namespace of the place that the process was started in.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from devcluster.errors import DevclusterError
from devcluster.state import ProcessId

# The first line reads the host's /proc, so it yields the host's pid. etcd lives in /run: memory, and gone with us.
_INIT = """set -e
read -r pid rest </proc/self/stat
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/lock
ip link set lo up
hostname "$2"
echo "$pid" >"$1.new"
mv "$1.new" "$1"
exec catatonit -P
"""
# Started through a shell that ends at once, so that pid 1 of the namespace becomes the parent and reaps it.
_DETACH = 'log=$1 pidfile=$2; shift 2; exec </dev/null >>"$log" 2>&1; setsid "$@" & echo $! >"$pidfile"'


@dataclass(frozen=True)
class Space:
    """The namespaces of a running cluster. `path` is the PATH that commands in it see."""

    init: ProcessId
    path: str

    @property
    def enter(self) -> list[str]:
        """Command prefix that runs a program inside."""
        return ["nsenter", "-t", str(self.init.pid), "-m", "-p", "-n", "-u", "-i", "--"]

    @property
    def root(self) -> Path:
        """The root directory as processes inside see it, reachable from outside."""
        return Path(f"/proc/{self.init.pid}/root")

    def run(self, argv: Sequence[str], prefix: Sequence[str] = (), stdin: str | None = None) -> str:
        """Run a command to its end and return its standard output.

        `prefix` leads further in (see Node.enter). Raises DevclusterError with the command's own words if it fails.
        """
        done = subprocess.run(
            [*(prefix or self.enter), *argv],
            env=self.environment(),
            capture_output=True,
            text=True,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            check=False,
        )
        if done.returncode:
            words = (done.stderr or done.stdout).strip()
            raise DevclusterError(f"`{shlex.join(argv)[:200]}` failed with status {done.returncode}: {words[-2000:]}")
        return done.stdout

    def spawn(
        self,
        argv: Sequence[str],
        *,
        groups: Iterable[Path],
        log: Path,
        pid_file: Path,
        prefix: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Start a long-running process inside, born in the given control groups, output appended to `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [*(prefix or self.enter), "sh", "-c", _DETACH, "sh", str(log), str(pid_file), *argv]
        subprocess.run(joining(groups, command), env=self.environment(), pass_fds=pass_fds, check=True)

    def environment(self) -> dict[str, str]:
        """Environment of everything that runs inside: nothing of the caller's leaks in."""
        return {"PATH": self.path, "HOME": "/root", "LANG": "C.UTF-8"}


def joining(groups: Iterable[Path], command: Sequence[str]) -> list[str]:
    """`command`, run by a shell that first moves itself into the control groups."""
    moves = "".join(f"echo 0 >{shlex.quote(str(group))}/cgroup.procs; " for group in groups)
    return ["sh", "-ec", moves + 'exec "$@"', "sh", *command]


def create(name: str, directory: Path, groups: Iterable[Path], path: str, *, ephemeral: bool) -> Space:
    """Make the namespaces of cluster `name`, with `directory` for pid file and log.

    `ephemeral` ties their life to the calling thread: the kernel kills the cluster when it ends, for whatever reason.
    """
    pid_file, log = directory / "run" / "init.pid", directory / "log" / "init.log"
    pid_file.unlink(missing_ok=True)
    tied = ["setpriv", "--pdeathsig", "KILL"] if ephemeral else []
    unshare = ["unshare", "-m", "-p", "-n", "-u", "-i", "--propagation", "private", "--fork", "--kill-child"]
    command = [*tied, *unshare, "sh", "-c", _INIT, "sh", str(pid_file), f"devcluster-{name}"]
    with log.open("ab") as output:
        parent = subprocess.Popen(
            joining(groups, command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "PATH": path},
        )
    wait_for(lambda: pid_file.exists() or parent.poll() is not None, 30, "the cluster's namespaces")
    if parent.poll() is not None:
        raise DevclusterError(
            f"the cluster's namespaces could not be made (in a container: --privileged): {log.read_text()}"
        )
    return Space(ProcessId.of(int(pid_file.read_text())), path)


def destroy(init: ProcessId, seconds: float = 15) -> None:
    """Kill pid 1 and wait until the kernel has ended everything below it; does nothing if it is already gone."""
    if not init.alive():
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(init.pid, signal.SIGKILL)
    wait_for(lambda: not init.alive(), seconds, f"the end of process {init.pid}")


def wait_for(condition: Callable[[], object], seconds: float, what: str, interval: float = 0.01) -> None:
    """Poll until `condition` holds; DevclusterError naming `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise DevclusterError(f"gave up after {seconds:g} s waiting for {what}")
        time.sleep(interval)
