"""How many members a job should have, and why."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain_operator.api import JobSpec
from llmtrain_operator.autoscale import OWN_ACCORD, Capacity, Limits, Loss, Sample, Situation, decide, limits, observed
from llmtrain_operator.autoscale.records import REASONS
from tests.support.specs import patched

NOW = 10_000.0
RANGE = Limits(1, 8)


def seen(*members, shared=4.0, alone=0.05, each=0.0, steps=100):
    return tuple(Sample(n, shared / n + alone + each * (n - 1), steps, NOW) for n in members)


TRAINS = Situation(
    size=4, target=4, steps_left=10_000, samples=seen(1, 2, 4), started_at=0.0, capacity=Capacity(0, "nodes", "no node")
)
ROOM = Capacity(2, "nodes", "2 nodes are free")
SLOW = {"shared": 4.0, "alone": 0.05, "each": 0.5}


@pytest.mark.parametrize(
    ("changes", "limits", "target", "reason"),
    [
        pytest.param({}, replace(RANGE, enabled=False), 8, "Disabled", id="off: nodes.desired"),
        pytest.param({"size": 0, "target": None, "capacity": ROOM}, RANGE, 2, "Starting", id="starts"),
        pytest.param(
            {"size": 0, "target": None, "samples": ()},
            replace(RANGE, minimum=3),
            3,
            "Starting",
            id="waits for its minimum",
        ),
        pytest.param(
            {"size": 0, "target": None, "samples": seen(1, 2, 4, 8, **SLOW), "capacity": Capacity(8)},
            RANGE,
            3,
            "Starting",
            id="starts again at the best size known",
        ),
        pytest.param(
            {"size": 0, "target": None, "samples": (), "prior": seen(1, 4, 8, **SLOW), "capacity": Capacity(8)},
            RANGE,
            8,
            "Starting",
            id="an estimate alone leaves no node idle",
        ),
        pytest.param({"capacity": ROOM}, RANGE, 6, "Growing", id="grows into free nodes"),
        pytest.param(
            {"samples": seen(4), "prior": seen(1, 4, 8, alone=40.0), "capacity": Capacity(1), "steps_left": 100},
            RANGE,
            4,
            "NotWorthIt",
            id="an estimate says that it gains nothing",
        ),
        pytest.param(
            {"samples": seen(4), "capacity": Capacity(1), "steps_left": 100}, RANGE, 5, "Growing", id="nothing says so"
        ),
        pytest.param({"capacity": Capacity(9)}, RANGE, 8, "Growing", id="up to the cap"),
        pytest.param({}, RANGE, 4, "NoCapacity", id="no room"),
        pytest.param({}, replace(RANGE, cap=4), 4, "AtCap", id="at the cap"),
        pytest.param({"target": 6}, RANGE, 4, "CapacityLost", id="nodes are lost"),
        pytest.param({"target": 6, "capacity": ROOM}, RANGE, 6, "Resizing", id="members are on their way"),
        pytest.param({}, replace(RANGE, cap=3), 3, "OutOfRange", id="the user has lowered the cap"),
        pytest.param({}, replace(RANGE, minimum=6), 6, "OutOfRange", id="the user has raised the minimum"),
        pytest.param({"capacity": Capacity(0, "nodes", "", 3)}, RANGE, 1, "HigherPriority", id="gives members away"),
        pytest.param(
            {"capacity": Capacity(0, "nodes", "", 3)},
            replace(RANGE, minimum=3),
            3,
            "HigherPriority",
            id="down to its minimum",
        ),
        pytest.param(
            {"capacity": Capacity(0, "nodes", "", 3), "changed_at": NOW - 1},
            RANGE,
            1,
            "HigherPriority",
            id="priority does not wait for the cool-down",
        ),
        pytest.param({"samples": seen(1, 2), "capacity": ROOM}, RANGE, 4, "Measuring", id="measures first"),
        pytest.param({"capacity": ROOM, "changed_at": NOW - 10}, RANGE, 4, "CoolingDown", id="cools down"),
        pytest.param({"capacity": ROOM, "changed_at": NOW - 61}, RANGE, 6, "Growing", id="has cooled down"),
        pytest.param(
            {"capacity": ROOM, "changed_at": NOW - 10, "changed_for": "Exploring"},
            RANGE,
            6,
            "Growing",
            id="what was only tried is left at once",
        ),
        pytest.param({"capacity": ROOM, "paused_seconds": 1030.0}, RANGE, 4, "PauseShareSpent", id="too many pauses"),
        pytest.param({"capacity": ROOM, "steps_left": 8}, RANGE, 4, "NotWorthIt", id="near the end"),
        pytest.param({"capacity": ROOM, "pause_seconds": 3000.0}, RANGE, 4, "NotWorthIt", id="long pause"),
        pytest.param(
            {"capacity": ROOM, "losses": tuple(Loss(NOW - 20 * n, 4) for n in range(16, 0, -1)), "pause_seconds": 30.0},
            RANGE,
            4,
            "NotWorthIt",
            id="such capacity never lasts",
        ),
        pytest.param(
            {"capacity": ROOM, "losses": tuple(Loss(NOW - 20 * n, 6) for n in range(16, 0, -1)), "pause_seconds": 30.0},
            RANGE,
            6,
            "Growing",
            id="what was lost did not concern it",
        ),
        pytest.param({"samples": seen(1, 2, 3, 4, **SLOW)}, RANGE, 3, "Faster", id="fewer are faster"),
        pytest.param(
            {"samples": seen(1, 2, 3, 4, alone=4.0)}, replace(RANGE, min_efficiency=0.3), 2, "Inefficient", id="wasted"
        ),
        pytest.param(
            {"samples": seen(1, 2, 3, 4, alone=4.0), "steps_left": 5},
            replace(RANGE, min_efficiency=0.3),
            4,
            "NoCapacity",
            id="wasted, but nearly done",
        ),
        pytest.param(
            {"samples": seen(1, 2, 3, 4, alone=4.0), "capacity": ROOM},
            replace(RANGE, min_efficiency=0.09),
            4,
            "NotWorthIt",
            id="more would be wasted",
        ),
        pytest.param(
            {"size": 16, "target": 16, "samples": seen(16), "steps_left": 100_000},
            replace(RANGE, cap=16),
            13,
            "Exploring",
            id="finds out whether fewer would do",
        ),
        pytest.param(
            {"steps_left": None, "capacity": ROOM}, RANGE, 6, "Growing", id="a job that does not say when it ends"
        ),
    ],
)
def test_a_decision_and_its_reason(changes, limits, target, reason):
    """Each situation has one answer, with a reason of the closed set and a message."""
    decision = decide(replace(TRAINS, **changes), limits, NOW)
    assert (decision.target, decision.reason) == (target, reason), decision.message
    assert decision.message


def test_the_cap_is_what_is_desired_and_what_the_batch_feeds():
    """spec.nodes and spec.autoscale as limits; more members than sequences would have nothing to do."""
    spec = JobSpec.model_validate(
        patched(
            {
                "nodes": {"min": 2, "max": 16, "desired": 12, "procPerNode": 2},
                "training": {"globalBatchSize": 16},
                "autoscale": {"enabled": True, "minEfficiency": 0.2, "maxPauseShare": 0.1, "coolDown": "5m"},
            }
        )
    )
    assert limits(spec) == Limits(2, 8, True, 0.2, 0.1, 300.0)
    assert not limits(JobSpec.model_validate(patched({}))).enabled


situations = st.builds(
    Situation,
    size=st.integers(0, 12),
    target=st.none() | st.integers(1, 12),
    steps_left=st.none() | st.integers(0, 10**6),
    samples=st.dictionaries(st.integers(1, 12), st.floats(0.01, 100), max_size=5).map(
        lambda times: tuple(Sample(n, times[n], 20, NOW) for n in sorted(times))
    ),
    capacity=st.builds(Capacity, more=st.integers(0, 12), claimed=st.integers(0, 12)),
    changed_at=st.none() | st.floats(0, NOW),
    pause_seconds=st.floats(0, 600),
    paused_seconds=st.floats(0, 5000),
    started_at=st.none() | st.floats(0, NOW),
    losses=st.lists(st.integers(0, 12), max_size=16).map(lambda left: tuple(Loss(NOW - 1, each) for each in left)),
)
ranges = st.builds(
    lambda least, more, efficiency: Limits(least, least + more, True, efficiency),
    st.integers(1, 6),
    st.integers(0, 8),
    st.floats(0, 0.9),
)


@given(situations, ranges)
def test_no_situation_takes_it_out_of_its_range(situation, limits):
    """The target is within the limits, its reason is of the closed set, and it never asks for what there is no room
    for of its own accord."""
    decision = decide(situation, limits, NOW)
    assert limits.minimum <= decision.target <= limits.cap
    assert decision.reason in REASONS
    if decision.reason in OWN_ACCORD:
        room = situation.size + situation.capacity.more - situation.capacity.claimed
        assert decision.target <= max(limits.minimum, room)
        assert decision.target != situation.size
        assert situation.changed_at is None or NOW - situation.changed_at >= limits.cool_down


@settings(max_examples=40)
@given(st.floats(0, 2), st.floats(0, 0.4), st.integers(1, 10), st.integers(0, 10**6))
def test_it_comes_to_rest(alone, each, room, seed):
    """Whatever the curve, in a cluster that does not change sizes are tried, each once, and no other change is made
    again and again, though step times go on varying by a twentieth."""
    luck, now, moves, tried = random.Random(seed), 0.0, [], []
    situation = Situation(room, room, 20_000, started_at=0.0)
    for _ in range(60):
        n = situation.size
        seconds = (4.0 / n + alone + each * (n - 1)) * luck.uniform(0.95, 1.05)
        samples, now = observed(situation.samples, n, seconds, 20, now), now + 100.0
        situation = replace(situation, samples=samples, capacity=Capacity(room - n))
        decision = decide(situation, Limits(1, 10), now)
        if decision.target != n:
            (tried if decision.reason == "Exploring" else moves).append((n, decision.target))
            situation = replace(situation, changed_at=now, changed_for=decision.reason)
        situation = replace(situation, size=decision.target, target=decision.target)
    assert len(moves) <= 6
    assert all(moves.count(each) <= 2 for each in moves)
    assert len(tried) == len({target for _, target in tried})
