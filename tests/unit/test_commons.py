"""Who may ask for more nodes, and who should give some up, as each job sees it."""

from __future__ import annotations

from llmtrain_operator.api import AutoscaleStatus, JobStatus, ProbeStatus, StepTimesStatus, StepTimeStatus
from llmtrain_operator.capacity import Needs
from llmtrain_operator.commons import Commons, Part, standing
from llmtrain_operator.conditions import timestamp
from llmtrain_operator.state import PodView
from tests.support.planner import NOW, pod, spec
from tests.unit.test_capacity import GPU, inventory, node


class Cluster:
    """Jobs with members on nodes of one device each."""

    def __init__(self, nodes: int) -> None:
        self.names = [f"n{i}" for i in range(nodes)]
        self.commons, self.pods = Commons(), {}

    def job(self, key: str, has: int, wants: int, *, priority: int = 0, scales=True, low=1, probes=0, gpus=1, **status):
        """`has` members with nodes of the `wants` that it should have, and `probes` more that it asks for."""
        taken = {p.node for pods in self.pods.values() for p in pods}
        free = [name for name in self.names if name not in taken]
        name = key.split("/")[1]
        facts = {"job": name, "requests": ((GPU, gpus * 1000),), "priority": priority}
        placed = [pod(i, uid=f"{key}{i}", node=free[i], **facts) for i in range(has)]
        waiting = [pod(i, uid=f"{key}{i}", node="", scheduled=False, **facts) for i in range(has, wants + probes)]
        self.pods[key] = (*placed, *waiting)
        probe = ProbeStatus(members=probes, since=timestamp(NOW)) if probes else None
        state = JobStatus(target_nodes=wants, autoscale=AutoscaleStatus(probe=probe) if scales else None, **status)
        fields = {"nodes": {"min": low, "max": 9, "desired": 9 if scales else wants}, "autoscale": {"enabled": scales}}
        fields["training"] = {"maxSteps": 100, "globalBatchSize": 64}
        made = standing(key, timestamp(NOW), spec(**fields), state, self.pods[key], Needs(key, ((GPU, gpus * 1000),)))
        return self.commons.update(key, made)

    def part(self, key: str) -> Part:
        there: tuple[PodView, ...] = tuple(p for pods in self.pods.values() for p in pods)
        return self.commons.part(key, inventory(*(node(name) for name in self.names), pods=there))


def test_alone_a_job_may_have_what_is_free():
    """Nobody else asks for it."""
    cluster = Cluster(4)
    cluster.job("d/a", 2, 2)
    assert cluster.part("d/a") == Part(2)


def test_a_job_of_higher_priority_that_waits_is_given_way():
    """As many members as it lacks, and no more is asked for meanwhile; it sees room where others would give some up."""
    cluster = Cluster(3)
    cluster.job("d/low", 3, 3)
    cluster.job("d/high", 0, 1, priority=10, scales=False)
    assert cluster.part("d/low") == Part(0, 1, ("d/high",))
    cluster.job("d/high", 0, 1, priority=10)
    assert cluster.part("d/high").room == 2, "of three, one is the other's minimum"


def test_nobody_gives_way_to_an_equal():
    """It is not worth the pauses; but a place that becomes free is for whoever gains more from it."""
    cluster = Cluster(3)
    cluster.job("d/a", 3, 3)
    cluster.job("d/b", 0, 1)
    assert cluster.part("d/a").claimed == 0


def test_of_equals_that_ask_for_the_same_node_one_gets_it():
    """The one that gains more: the smaller one, with the same curve. The other waits for its turn."""
    cluster = Cluster(4)
    sizes = tuple(
        StepTimeStatus(members=n, step_seconds=0.2 + 0.8 / n, steps=50, time=timestamp(NOW)) for n in (1, 2, 3)
    )
    learned = StepTimesStatus(sizes=sizes)
    cluster.job("d/a", 2, 2, probes=1, step_times=learned)
    cluster.job("d/b", 1, 1, probes=1, step_times=learned)
    assert (cluster.part("d/a").room, cluster.part("d/a").claimants) == (0, ("d/b",))
    assert (cluster.part("d/b").room, cluster.part("d/b").claimants) == (1, ())


def test_what_would_not_fit_is_not_given_up_for():
    """The other's members need two devices and each of ours leaves one."""
    cluster = Cluster(2)
    cluster.job("d/low", 2, 2)
    cluster.job("d/high", 0, 1, priority=10, scales=False, gpus=2)
    assert cluster.part("d/low").claimed == 0


def test_what_is_on_its_way_is_not_given_up_again():
    """A job that wants fewer than it has does not hold the rest any more."""
    cluster = Cluster(3)
    cluster.job("d/low", 3, 2)
    cluster.job("d/high", 0, 1, priority=10, scales=False)
    assert cluster.part("d/low").claimed == 0


def test_a_job_that_is_over_asks_for_nothing():
    """And whoever gave way hears of it."""
    cluster = Cluster(3)
    cluster.job("d/low", 2, 2)
    assert cluster.job("d/high", 0, 1, priority=10, scales=False) == ("d/low",)
    assert cluster.job("d/high", 0, 1, priority=10, scales=False) == ()
    assert cluster.job("d/high", 0, 1, priority=10, scales=False, completion_time=timestamp(NOW)) == ("d/low",)
    assert cluster.part("d/low") == Part(1)
    assert cluster.commons.forget("d/high") == ("d/low",)


def test_how_sure_a_job_is_of_its_step_times_is_known_to_the_others():
    """A single noisy step says less."""

    def deviation(noise):
        size = StepTimeStatus(members=2, step_seconds=0.6, steps=1, time=timestamp(NOW), noise=noise)
        status = JobStatus(step_times=StepTimesStatus(sizes=(size,)))
        return standing("d/a", "", spec(), status, (), Needs("d/a", ())).claim.curve.deviation(2)

    assert deviation(0.5) > 2 * deviation(0.01)
