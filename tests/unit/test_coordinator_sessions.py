import dataclasses

import pytest

from llmtrain_operator.contract.codec import WireError
from llmtrain_operator.contract.wire import Check, Directive, Member, Neighbour, Progress, Publish, Report, Round
from llmtrain_operator.coordinator.auth import Identity
from llmtrain_operator.coordinator.bundle import pack, same, unpack
from llmtrain_operator.coordinator.directives import Directives
from llmtrain_operator.coordinator.sessions import LagMeter, Part, Session, differs_in_substance, expired, missed

DEADLINE = 5.0


def heard(*silences):
    return {str(i): 100.0 - silence for i, silence in enumerate(silences)}


@pytest.mark.parametrize(
    ("silences", "lag", "lost"),
    [
        pytest.param((0.1, 4.9), 0.0, "", id="within the deadline"),
        pytest.param((0.1, 5.1), 0.0, "1", id="one silent agent is lost"),
        pytest.param((0.1, 5.1), 0.2, "", id="while the coordinator did not listen nobody is lost"),
        pytest.param((5.1, 5.1, 0.1), 0.0, "", id="many at once: the coordinator suspects itself"),
        pytest.param((5.1, 4.3, 0.1), 0.0, "", id="the second of many is still falling silent"),
        pytest.param((5.1, 2.0, 0.1), 0.0, "0", id="a short pause of another is no sign of a fault here"),
        pytest.param((10.1, 10.1, 0.1), 0.0, "01", id="many at once: after one more deadline they are lost"),
        pytest.param((5.1, 5.1) + (0.1,) * 9, 0.0, "01", id="two of eleven are not many"),
        pytest.param((), 0.0, "", id="nobody there"),
    ],
)
def test_silence_ends_a_membership_unless_the_fault_may_be_here(silences, lag, lost):
    """An agent is lost after the deadline, extended by lag, and doubled when more than a fifth fall silent together."""
    assert expired(100.0, heard(*silences), lag, DEADLINE) == frozenset(lost)


def parts(*members):
    """Of a round: (seconds since it was heard, since it told of another step, seconds that its last step took)."""
    return {str(i): Part(100.0 - quiet, 100.0 - still, took, True) for i, (quiet, still, took) in enumerate(members)}


@pytest.mark.parametrize(
    ("members", "lag", "lost"),
    [
        pytest.param([(0.1, 0.9, 0.1), (1.3, 1.5, 0.1), (0.2, 1.0, 0.1)], 0.0, "1", id="silent, and all stand still"),
        pytest.param([(0.1, 0.9, 0.1), (1.1, 1.5, 0.1)], 0.0, "", id="not yet silent"),
        pytest.param([(0.1, 0.3, 0.1), (1.3, 1.5, 0.1)], 0.0, "", id="silent, but training goes on"),
        pytest.param([(0.1, 2.9, 1.0), (1.3, 3.3, 1.0)], 0.0, "", id="a step may take that long"),
        pytest.param([(0.1, 3.1, 1.0), (1.3, 3.3, 1.0)], 0.0, "1", id="no step takes that long"),
        pytest.param([(0.1, 2.0, 0.1), (0.3, 2.0, 0.1)], 0.0, "", id="a standstill of all that are heard"),
        pytest.param([(0.1, 0.9, 0.1), (1.3, 1.5, 0.1)], 0.2, "", id="we did not listen ourselves"),
        pytest.param([(1.3, 1.5, 0.1), (1.3, 1.5, 0.1)], 0.0, "", id="all are silent: nobody can say that it waits"),
        pytest.param([(0.1, 0.9, 0.1), (1.3, 1.5, 0.1), (1.4, 1.5, 0.1)], 0.0, "12", id="two at once"),
        pytest.param([(0.1, 9.0, None), (1.3, 9.0, None)], 0.0, "", id="a first step takes as long as it takes"),
        pytest.param([(1.3, 1.5, 0.1)], 0.0, "", id="alone"),
    ],
)
def test_a_short_silence_is_enough_where_the_round_stands_still(members, lag, lost):
    """Either alone is nothing: agents are late on a busy machine, and steps take their time."""
    assert missed(100.0, parts(*members), lag) == frozenset(lost)


def test_a_standstill_in_another_phase_proves_nothing():
    """Saving, evaluating and exporting take as long as they take."""
    busy = parts((0.1, 9.0, 0.1), (1.3, 9.0, 0.1))
    busy["0"] = dataclasses.replace(busy["0"], stepping=False)
    assert missed(100.0, busy, 0.0) == frozenset()


def test_what_an_agent_says_again_is_no_step():
    """Only another step moves a round; the longest of the last steps counts, and a new round begins to learn anew."""
    session = Session(Identity("ns", "p", "u"), None, 0.0, moved=5.0)
    assert session.part() is None

    def says(number, step, took, now):
        said = Progress(0, number, step=step, step_seconds=took)
        session.hear(Report("ns/j", "p", "u", 0, 0, "h", "running", number, progress=said), now)
        return session.part()

    assert says(1, 7, 3.0, 10.0) == Part(10.0, 10.0, 3.0, True)
    assert says(1, 7, 3.0, 11.0) == Part(11.0, 10.0, 3.0, True)
    assert says(1, 8, 0.1, 12.0) == Part(12.0, 12.0, 3.0, True)
    assert says(2, 8, 0.1, 13.0) == Part(13.0, 13.0, 0.1, True)


def test_stalls_count_only_for_a_while():
    """Stalls of the loop add up within the window and are forgotten after it."""
    meter = LagMeter(window=10.0)
    assert meter.note(1.0, 2.0) == 2.0
    assert meter.note(5.0, 1.0) == 3.0
    assert meter.note(11.5, 0.0) == 1.0
    assert meter.note(20.0, 0.0) == 0.0


def run(number):
    return Directive("run", "go", Round(number, (), 1))


def test_a_pod_is_never_sent_back_to_an_older_round():
    """An older round published late changes nothing, a newer one and a stop do."""
    directives = Directives()
    assert directives.replace(Publish("ns/j", {"a": run(2)})) == {"a": run(2)}
    assert directives.replace(Publish("ns/j", {"a": run(1)})) == {}
    assert directives.of("a") == run(2)
    assert directives.replace(Publish("ns/j", {"a": run(3), "b": run(3)})) == {"a": run(3), "b": run(3)}
    stop = Directive("stop", "suspended")
    assert directives.replace(Publish("ns/j", {"a": stop})) == {"a": stop}
    assert directives.of("b") is None


def test_a_round_is_sent_once_however_many_members_it_has():
    """Packing loses nothing and grows with the number of members, not with its square."""

    def publish(size):
        members = tuple(Member(i, 0, f"job-{i}-0", f"uid-{i}", "10.0.0.1", 29500) for i in range(size))
        orders = dict.fromkeys((m.uid for m in members), Directive("run", "all are ready", Round(1, members, 8)))
        return Publish("ns/j", {**orders, "spare": Directive("wait", "not needed")})

    assert unpack(pack(publish(3))) == publish(3)
    assert unpack(pack(Publish("ns/j", {}))) == Publish("ns/j", {})
    assert len(pack(publish(1000))) < 150_000
    with pytest.raises(WireError):
        unpack("{}")


def test_members_that_wait_may_be_told_different_things():
    """Each newcomer measures its network against another one."""
    checks = [Check(1), Check(2), Check(2, Neighbour("pod-a", "10.0.0.1", 1, "key"))]
    publish = Publish("ns/j", {str(i): Directive("wait", "not yet", check=check) for i, check in enumerate(checks)})
    assert unpack(pack(publish)) == publish
    others = Publish("ns/j", {**publish.directives, "0": Directive("wait", "not yet", check=Check(2))})
    assert same(publish, publish)
    assert not same(publish, others)


def test_that_an_agent_was_told_to_end_is_passed_on_at_once():
    """The others have its grace period to save."""
    before = Report("ns/j", "j-0-1", "u0", 0, 1, "10.0.0.1", "running", 1)
    assert not differs_in_substance(before, before)
    assert differs_in_substance(before, dataclasses.replace(before, leaving="SIGTERM"))
