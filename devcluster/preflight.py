"""What the machine must have before a cluster can start, and how to get what is missing."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from devcluster import paths
from devcluster.errors import DevclusterError

# program -> Debian package
PROGRAMS = {
    "crun": "crun",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
    "ip": "iproute2",
    "nft": "nftables",
    "catatonit": "catatonit",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "mmdebstrap": "mmdebstrap",
    "buildah": "buildah",
    "prometheus": "prometheus",
    "promtool": "prometheus",
}
# Only `images` needs these; a cluster starts without.
_IMAGE_PROGRAMS = {"mmdebstrap", "buildah"}
# Only the tests of boards and alerts need these, and the pictures.
_MONITORING_PROGRAMS = {"prometheus", "promtool"}
# Only tests of the live page need it: program -> Debian package.
BROWSER = {"chromium": "chromium"}
_INOTIFY_LIMIT = Path("/proc/sys/fs/inotify/max_user_instances")
_INOTIFY_INSTANCES = 8192
SERVICES = Path("/etc/systemd/system")
_HIDDEN_ON_NODES = ("/run", "/proc", "/sys", "/var/lib", "/var/log")
_SEARCH_PATH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"


def missing_packages(programs: dict[str, str]) -> list[str]:
    """Debian packages, sorted, of the programs that are not there."""
    return sorted(
        {package for program, package in programs.items() if shutil.which(program, path=_SEARCH_PATH) is None}
    )


def check_machine(node_cpu: int = 0) -> None:
    """Raise DevclusterError naming everything that a cluster lacks on this machine, with the remedy.

    `node_cpu` is how many cores a node is to offer.
    """
    problems = []
    if sys.platform != "linux":
        raise DevclusterError("devcluster needs Linux: run it in a Linux virtual machine")
    if os.geteuid() != 0:
        problems.append("not root: run it with sudo (namespaces, mounts and control groups need it)")
    spared = _IMAGE_PROGRAMS | _MONITORING_PROGRAMS
    needed = {program: package for program, package in PROGRAMS.items() if program not in spared}
    if packages := missing_packages(needed):
        problems.append(f"missing programs: `make setup`, or `apt-get install {' '.join(packages)}`")
    if node_cpu > (cores := os.cpu_count() or 1):
        problems.append(f"node_cpu {node_cpu}: a node cannot offer more than this machine's {cores} cores")
    if "\toverlay\n" not in Path("/proc/filesystems").read_text() and not _load_overlay():
        problems.append("no overlayfs in this kernel: `modprobe overlay`, or a kernel with CONFIG_OVERLAY_FS")
    cache = str(paths.cache_root().resolve())
    if " " in cache:
        problems.append(f"the cache {cache!r} has a blank in its path: set LLMTRAIN_CACHE to another place")
    if any(cache == hidden or cache.startswith(f"{hidden}/") for hidden in _HIDDEN_ON_NODES):
        problems.append(f"the cache {cache} would be hidden on the nodes: set LLMTRAIN_CACHE to another place")
    if problems:
        raise DevclusterError("this machine is not ready:\n" + "\n".join(f"- {problem}" for problem in problems))


def raise_inotify_limit(say: Callable[[str], None], limit: Path = _INOTIFY_LIMIT) -> None:
    """Raise the host's limit of inotify instances per user if it is too low for several clusters; never lower it.

    Debian's default of 128 is used up by about ten kubelets and their containerds; a kubelet then dies. It is the one
    setting of the host that a cluster changes, until the next reboot; where that is forbidden, the user is told.
    """
    if int(limit.read_text()) >= _INOTIFY_INSTANCES:
        return
    try:
        limit.write_text(str(_INOTIFY_INSTANCES))
    except OSError:
        say(f"{limit} is low and cannot be set: more than about ten nodes may not start")


def install_packages(say: Callable[[str], None], programs: dict[str, str] = PROGRAMS) -> None:
    """Install the Debian packages of the programs that are missing; DevclusterError where that is not possible."""
    packages = missing_packages(programs)
    if not packages:
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise DevclusterError(f"run as root on Debian or Ubuntu: {' '.join(command)}")
    say(f"installing {' '.join(packages)}")
    if "prometheus" in packages:
        mask(SERVICES / "prometheus.service")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in (["apt-get", "update"], command):
        done = subprocess.run(step, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DevclusterError(f"`{' '.join(step)}` failed:\n{(done.stderr or done.stdout)[-2000:]}")


def mask(unit: Path) -> None:
    """Keep a service from being started now, as its package would, and at every boot; `systemctl unmask` undoes it.

    What somebody has said of that service before is left alone.
    """
    if unit.parent.is_dir() and not unit.exists() and not unit.is_symlink():
        unit.symlink_to(os.devnull)


def _load_overlay() -> bool:
    return shutil.which("modprobe") is not None and not subprocess.run(["modprobe", "overlay"], check=False).returncode
