"""Where a cluster's control groups go, on every arrangement of hierarchies."""

import pytest

from devcluster.cgroups import ClusterGroups, Hierarchy, parse_hierarchies

SPLIT = """30 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
CO_MOUNTED = "33 25 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
UNIFIED = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
CONTAINER = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"


@pytest.mark.parametrize(
    ("mountinfo", "own", "expected"),
    [
        pytest.param(
            SPLIT,
            "9:name=systemd:/\n8:pids:/\n4:memory:/a/b\n0::/\n",
            [
                Hierarchy("name=systemd", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/systemd"),
                Hierarchy("memory", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/a/b"),
                Hierarchy("", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified"),
            ],
            id="split-and-unmounted-pids",
        ),
        pytest.param(
            CO_MOUNTED,
            "3:cpu,cpuacct:/user.slice\n",
            [Hierarchy("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/user.slice")],
            id="co-mounted",
        ),
        pytest.param(
            UNIFIED,
            "0::/user.slice/session-1.scope\n",
            [Hierarchy("", "/sys/fs/cgroup", "/sys/fs/cgroup/user.slice/session-1.scope")],
            id="v2",
        ),
        pytest.param(
            CONTAINER,
            "4:memory:/docker/abc/x\n",
            [Hierarchy("memory", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/x")],
            id="container-root",
        ),
    ],
)
def test_hierarchies_are_found_as_mounted(mountinfo, own, expected):
    """Each mounted hierarchy with the process's own group in it."""
    assert parse_hierarchies(mountinfo, own) == expected


def test_v1_groups_stay_inside_the_starters_group():
    """What a cluster uses is accounted to whoever started it."""
    groups = ClusterGroups.plan("x", [Hierarchy("memory", "/c/memory", "/c/memory/a"), Hierarchy("", "/c/u", "/c/u")])
    assert groups.tops == {"memory": "/c/memory/a/llmtrain-x", "": "/c/u/llmtrain-x"}
    assert not groups.is_v2
    assert groups.entry("n1") == groups.directories("n1")


def test_v2_groups_go_to_the_root_and_nodes_keep_processes_in_a_leaf():
    """On v2 a group with processes cannot pass controllers on."""
    groups = ClusterGroups.plan("x", [Hierarchy("", "/c", "/c/user.slice")])
    assert groups.tops == {"": "/c/llmtrain-x"}
    assert groups.is_v2
    assert [str(path) for path in groups.entry("n1")] == ["/c/llmtrain-x/n1/init"]
    assert [str(path) for path in groups.entry("cp")] == ["/c/llmtrain-x/cp"]
