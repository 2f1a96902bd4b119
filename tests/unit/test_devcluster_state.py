"""The record of a cluster: it reads back as written, and tells a living cluster from a crashed one."""

import dataclasses
import os
import subprocess

import pytest

from devcluster import state
from devcluster.cgroups import ClusterGroups
from devcluster.config import ClusterConfig
from devcluster.errors import DevclusterError
from devcluster.state import ClusterState, ProcessId

OWN = ProcessId.of(os.getpid())
RECORD = ClusterState(ClusterConfig("x", 2), ClusterGroups({"memory": "/c/m"}), 4567, "/b:/usr/bin", state.READY, OWN)


def ended_process():
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    identity = ProcessId.of(process.pid)
    process.kill()
    process.communicate()
    return identity


def test_a_record_reads_back_as_written(tmp_path):
    """Also its processes and an absent owner."""
    RECORD.write(tmp_path)
    assert state.read(tmp_path) == RECORD
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]


def test_no_record_is_no_cluster(tmp_path):
    """A directory without a state file."""
    assert state.read(tmp_path) is None


def test_an_unreadable_record_is_not_taken_for_none(tmp_path):
    """Then something may run that could not be found: the person must know."""
    (tmp_path / "state.json").write_text('{"phase": "ready"}')
    with pytest.raises(DevclusterError, match="unreadable"):
        state.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "running"),
    [
        pytest.param({}, True, id="complete-and-alive"),
        pytest.param({"phase": state.STARTING}, False, id="killed-while-starting"),
        pytest.param({"init": None}, False, id="killed-before-its-first-process"),
        pytest.param({"init": dataclasses.replace(OWN, started=1)}, False, id="pid-reused"),
        pytest.param({"init": dataclasses.replace(OWN, boot="other")}, False, id="machine-rebooted"),
        pytest.param({"owner": OWN}, True, id="owner-alive"),
        pytest.param({"owner": ended_process()}, False, id="owner-dead"),
    ],
)
def test_only_a_complete_and_living_cluster_counts_as_running(changes, running):
    """Everything else is a leftover that the next start removes."""
    assert dataclasses.replace(RECORD, **changes).running() is running
