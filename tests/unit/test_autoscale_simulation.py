"""The policy on whole jobs, beside what hindsight would have done."""

import hashlib
import json

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain_operator.autoscale import Decision, oracle
from llmtrain_operator.autoscale.records import OWN_ACCORD
from llmtrain_operator.autoscale.trace import StepTime, Trace, TraceJob
from llmtrain_operator.autoscale.verdict import judge
from llmtrain_operator.autoscale.world import fixed, simulate
from llmtrain_operator.cli.simulate import bundled_traces
from llmtrain_operator.cli.simulate import simulate as command

BUNDLED = bundled_traces()


def trace(*capacity, faults=(), tick=1.0, seed=0, **job):
    whole = {"name": "j", "steps": 100, "max": 4, "step_time": StepTime(shared=4.0), "pause": 5, "recovery": 7, **job}
    jobs = (TraceJob(**whole),)
    return Trace(name="t", tick=tick, capacity=capacity or ((0, 4),), faults=faults, jobs=jobs, seed=seed)


def alone(found):
    (only,) = found
    return only


@pytest.mark.parametrize("name", [each.name for each in BUNDLED])
def test_bundled_traces(name):
    """On every bundled trace a job takes at most 5 % longer than the oracle, and 2 % longer than the better one of the
    two fixed sizes; pauses of its own accord keep to their share."""
    for verdict in judge(next(each for each in BUNDLED if each.name == name)):
        assert verdict.regret is not None
        assert -1e-9 <= verdict.regret <= 0.05
        assert verdict.over_fixed is not None
        assert verdict.over_fixed <= 0.02
        assert verdict.course.paused <= 0.05 * verdict.seconds


@pytest.mark.parametrize(
    ("given", "size", "seconds"),
    [
        pytest.param(trace(), 4, 5 + 100, id="a pause to begin, then a step per second"),
        pytest.param(trace(), 2, 5 + 200, id="half as many"),
        pytest.param(trace((0, 2), (105, 4)), 4, 105 + 5 + 50, id="more nodes: a pause, then twice as fast"),
        pytest.param(trace((0, 4), (55, 2)), 4, 55 + 7 + 100, id="lost nodes: a recovery, then half as fast"),
        pytest.param(trace(faults=(20,)), 4, 5 + 7 + 100, id="a fault"),
        pytest.param(trace((0, 4), (55, 0), (155, 4)), 4, 155 + 5 + 50, id="no node at all for a while"),
        pytest.param(trace(prepare=3), 4, 3 + 5 + 100, id="pods take their time"),
        pytest.param(trace((0, 0), (50, 4)), 4, 50 + 5 + 100, id="waits to begin"),
        pytest.param(trace(arrives=30), 4, 30 + 5 + 100, id="comes later"),
    ],
)
def test_the_world_is_as_it_says(given, size, seconds):
    """What a job of a fixed size takes can be counted by hand."""
    assert alone(simulate(given, fixed(size))).finish == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        pytest.param(trace(), 105, id="nothing to choose"),
        pytest.param(trace((0, 2), (105, 4)), 160, id="follows capacity that stays"),
        pytest.param(trace((0, 2), (100, 4), (103, 2)), 205, id="does not follow what is gone at once"),
        pytest.param(trace(step_time=StepTime(shared=4.0, per_member=1.0)), 5 + 300, id="takes the best size"),
        pytest.param(trace(faults=(20,)), 112, id="cannot avoid faults"),
        pytest.param(trace((0, 1), prepare=60), 405, id="needs no time to prepare"),
    ],
)
def test_the_oracle_does_the_best(given, seconds):
    """Small traces, whose optimum is plain."""
    assert oracle.finish(given, given.jobs[0], given.room(1000), 1000) == pytest.approx(seconds)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 4)), max_size=6),
    st.lists(st.integers(0, 200), max_size=3),
    st.floats(0, 1),
    st.integers(0, 9),
    st.integers(0, 9),
    st.integers(0, 10**6),
)
def test_no_schedule_beats_the_oracle(steps, faults, per_member, pause, recovery, luck):
    """However sizes are chosen, no job of the same world ends before the oracle's."""
    time, capacity = 0, [(0, 3)]
    for length, level in steps:
        time += length
        capacity.append((time, level))
    capacity.append((time + 50, 4))
    given = trace(
        *capacity, faults=tuple(faults), step_time=StepTime(shared=4.0, per_member=per_member), pause=pause,
        recovery=recovery, noise=0.2, seed=luck,
    )  # fmt: skip

    def random(situation, limits, now):
        draw = hashlib.sha256(f"{luck}/{now // 7}".encode()).digest()[0]
        room = situation.size + situation.capacity.more - situation.capacity.claimed
        return Decision(max(1, min(room, limits.cap, 1 + draw % 4)), "Disabled", "at random")

    for policy in (random, fixed(4)):
        course = alone(simulate(given, policy))
        best = oracle.finish(given, course.job, given.room(len(course.held)), len(course.held))
        assert best is not None
        assert best <= course.finish + 1e-6


def test_priority_takes_and_gives_back():
    """A job of higher priority gets its members within a few ticks, the other keeps its minimum, has them back
    afterwards, and neither is ever without members once it trains."""
    shared = next(each for each in BUNDLED if each.name == "two-jobs")
    nightly, urgent = simulate(shared)
    comes, goes = int(urgent.job.arrives / shared.tick), int(urgent.finish / shared.tick)
    assert nightly.held[comes - 1] == 8
    assert (nightly.held[comes + 5], urgent.held[comes + 5]) == (2, 6)
    assert nightly.held[goes + 20] == 8
    assert all(nightly.held[1 : int(nightly.finish / shared.tick)])
    assert any(each.decision.reason == "HigherPriority" for each in nightly.changes)


def test_a_job_that_wants_efficiency_has_fewer_members():
    """minEfficiency buys member time with time: the same trace with more of it."""
    wasteful = trace((0, 4), (100, 16), steps=4000, max=16, step_time=StepTime(shared=2.0, serial=0.4))
    job = wasteful.jobs[0]
    thrifty = job.model_copy(update={"autoscale": job.autoscale.model_copy(update={"min_efficiency": 0.3})})
    much, little = alone(simulate(wasteful)), alone(simulate(wasteful.model_copy(update={"jobs": (thrifty,)})))
    assert little.finish > much.finish
    assert little.member_ticks < 0.6 * much.member_ticks
    assert all(each.decision.reason in OWN_ACCORD | {"Starting"} for each in little.changes)


TRACE = {
    "name": "mine",
    "capacity": [[0, 2], [100, 4]],
    "jobs": [{"name": "llm", "steps": 300, "max": 4, "stepTime": {"shared": 4.0}}],
}


def invoked(tmp_path, given, *options):
    file = tmp_path / "mine.json"
    file.write_text(given if isinstance(given, str) else json.dumps(given))
    return CliRunner().invoke(command, [str(file), *options])


def test_a_trace_of_ones_own(tmp_path):
    """A file of the user's is simulated, in words and as JSON."""
    said = invoked(tmp_path, TRACE, "--decisions")
    assert said.exit_code == 0, said.output
    assert "Growing: 2 to 4 members: predicted" in said.output
    (record,) = json.loads(invoked(tmp_path, TRACE, "-o", "json").output)
    assert (record["trace"], record["job"]) == ("mine", "llm")
    assert record["seconds"] >= record["oracleSeconds"] > 0
    assert record["changes"][0] == {"second": 0.0, "from": 0, "to": 2, "reason": "Starting"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        pytest.param("a: [", "not YAML", id="not YAML"),
        pytest.param({**TRACE, "capacity": [[5, 1]]}, "capacity must begin at second 0", id="begins late"),
        pytest.param({**TRACE, "capacity": [[0, 1], [9, 2], [5, 1]]}, "in order of time", id="out of order"),
        pytest.param({**TRACE, "capacty": []}, "capacty", id="typo"),
        pytest.param({**TRACE, "jobs": TRACE["jobs"] * 2}, "no two jobs may have the same name", id="same name"),
        pytest.param({**TRACE, "jobs": [{**TRACE["jobs"][0], "min": 5}]}, "min (5) must not be", id="no range"),
        pytest.param("", "mine.json: trace", id="empty"),
    ],
)
def test_bad_traces_are_named(tmp_path, given, says):
    """What is wrong with a trace is one line that names file and field."""
    said = invoked(tmp_path, given)
    assert said.exit_code == 1
    assert says in said.output
