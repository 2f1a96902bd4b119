"""Session fixtures: `control_plane` (API server only, about 4 s) and `cluster` (3 nodes).

Use it with `pytest_plugins = ["devcluster.pytest_plugin"]` in a conftest. The clusters end with the session, also when
tests fail, and by the kernel's hand when pytest itself is killed; what control groups that leaves, the next session
removes. Sessions that run at the same time get clusters of different names.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from devcluster.cluster import BusyError, Cluster
from devcluster.errors import DevclusterError

_MOST_SESSIONS = 9


@pytest.fixture(scope="session")
def control_plane() -> Iterator[Cluster]:
    """etcd, API server, controller manager and scheduler, without nodes."""
    with session_cluster("api-tests", nodes=0) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three nodes, each offering two of nvidia.com/gpu, with the images of the cache loaded."""
    with session_cluster("e2e-tests", nodes=3, accelerators={"nvidia.com/gpu": 2}) as cluster:
        yield cluster


@contextlib.contextmanager
def session_cluster(purpose: str, **settings: Any) -> Iterator[Cluster]:
    """A cluster that lives as long as the block, or as this process; `settings` are fields of ClusterConfig.

    It is called `purpose`, or `purpose`-2 and so on where another session uses that name already.
    """
    cluster = _start(purpose, settings)
    try:
        yield cluster
    finally:
        cluster.down()


def _start(purpose: str, settings: dict[str, Any]) -> Cluster:
    for number in range(1, _MOST_SESSIONS + 1):
        cluster = Cluster(purpose if number == 1 else f"{purpose}-{number}", _say, **settings)
        try:
            cluster.up(ephemeral=True)
        except BusyError:
            continue
        return cluster
    raise DevclusterError(f"{_MOST_SESSIONS} clusters for {purpose} run at once: end some of them")


def _say(line: str) -> None:
    print(line, file=sys.stderr)
