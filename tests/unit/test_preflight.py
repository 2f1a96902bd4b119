"""Which nodes fall short of their peers."""

from __future__ import annotations

import pytest

from llmtrain_operator.contract.wire import Preflight
from llmtrain_operator.preflight import FIGURES, medians, shortfalls

GOOD = {"matmul": 1.0, "memory": 12.0, "network": 900.0, "disk": 400.0}


def node(attempt=1, **figures) -> Preflight:
    """A node as good as any, but for these figures."""
    return Preflight(attempt, **(GOOD | figures))


@pytest.mark.parametrize(
    ("nodes", "bad"),
    [
        pytest.param([], [], id="nobody"),
        pytest.param([node(matmul=0.01)], [], id="alone: nothing to compare with"),
        pytest.param([node(), node()], [], id="two alike"),
        pytest.param([node(memory=5.9), node()], [0], id="two: less than half of the other"),
        pytest.param([node(memory=6.1), node()], [], id="two: a little more than half"),
        pytest.param([node(), node(disk=1.0), node(), node()], [1], id="one of four"),
        pytest.param([node(), node(), node(matmul=0.1), node(network=0.0)], [2, 3], id="two of four, in two ways"),
        pytest.param([node(matmul=0.1)] * 4, [], id="all alike slow"),
        pytest.param([node(matmul=0.1)] * 3 + [node()], [], id="one is better than all others"),
        pytest.param([node(matmul=0.1), node(disk=1.0)], [], id="each bad in its own way: nobody is left to be good"),
        pytest.param([node(), node(), node(network=None)], [], id="not measured is not bad"),
        pytest.param([node(network=None), node(network=1.0)], [], id="no peer has this figure"),
        pytest.param([Preflight(), node(), node()], [], id="not measured yet"),
        pytest.param([node(error="no space left"), node(), node()], [0], id="its check failed"),
        pytest.param([node(error="no space left")], [0], id="its check failed, and there are no others"),
        pytest.param([node(error="x", matmul=9e9), node(), node()], [0], id="figures of a failed check do not count"),
        pytest.param([node(matmul=0.4), node(matmul=0.5), node()], [], id="the median of two is their mean"),
    ],
)
def test_a_node_is_judged_by_the_median_of_the_others(nodes, bad):
    """Below half of it is bad; a few bad ones change little, and never are all bad."""
    found = shortfalls({str(number): each for number, each in enumerate(nodes)}, 0.5)
    assert sorted(found) == [str(number) for number in bad]


@pytest.mark.parametrize("field", FIGURES)
def test_each_figure_counts(field):
    """A node that is slow in one way alone is found, at any tolerance."""
    found = {"a": node(), "b": node(), "slow": node(**{field: GOOD[field] * 0.75})}
    assert not shortfalls(found, 0.7)
    assert list(shortfalls(found, 0.8)) == ["slow"]


def test_what_is_wrong_is_said_in_numbers():
    """Each bad figure with its peers', and whom the network was measured with."""
    found = {"a": node(), "b": node()}
    found["slow"] = node(memory=3.14159, network=0.0, device="cpu", neighbour="j-1-1: refused")
    assert shortfalls(found, 0.5)["slow"] == (
        "memory bandwidth (cpu) 3.14 GB/s, its peers' median is 12 GB/s; "
        "all-reduce with a neighbour (j-1-1: refused) 0 MB/s, its peers' median is 900 MB/s"
    )


def test_the_nodes_are_described_by_their_medians():
    """Of those that have a figure; a figure that nobody has is left out."""
    text = medians([node(disk=None, network=None), node(disk=None, network=None, matmul=3.0), node(disk=None)])
    assert text == "matmul 1 TFLOP/s, memory bandwidth 12 GB/s, all-reduce with a neighbour 900 MB/s"


def test_thousands_are_compared_in_no_time():
    """The median of all the others is the one that sorting them anew would give."""
    found = {str(number): node(matmul=float(number)) for number in range(2001)}
    bad = shortfalls(found, 0.5)
    assert sorted(map(int, bad)) == list(range(501))
    assert bad["500"].endswith("its peers' median is 1000 TFLOP/s")
