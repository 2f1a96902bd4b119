"""Which nodes stand out, for how long they are avoided, and what ends speak against a node at all."""

from __future__ import annotations

import signal

import pytest

from llmtrain_operator import avoidance
from llmtrain_operator.conditions import seconds
from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Failure

NOW = 1_700_000_000.0
HOUR = 3600.0


def failures(text: str, *, ago: float = 60.0) -> avoidance.Failures:
    """One failure for each letter, which is the node's name."""
    found: avoidance.Failures = ()
    for node in text:
        found = avoidance.noted(found, node, "PodLost", NOW - ago)
    return found


@pytest.mark.parametrize(
    ("past", "used", "expected"),
    [
        pytest.param("aaa", "abc", True, id="three-and-the-others-none"),
        pytest.param("aa", "abc", False, id="two-may-be-chance"),
        pytest.param("aaabbbccc", "abc", False, id="all-alike"),
        pytest.param("aaabbcc", "abc", False, id="hardly-more-than-others"),
        pytest.param("aaab", "abc", True, id="another-had-one"),
        pytest.param("aaabbb", "ab", False, id="both-of-two"),
        pytest.param("aaabbb", "abcdefgh", True, id="two-of-many"),
        pytest.param("aaa", "a", False, id="nothing-to-compare-it-with"),
        pytest.param("aaabb", "a", False, id="those-left-behind-count-too"),
    ],
)
def test_a_node_is_judged_by_the_others(past, used, expected) -> None:
    """At least three failures within an hour, and more than twice as many as others have on average."""
    assert avoidance.stands_out(failures(past), "a", set(used), NOW) is expected


def test_what_was_long_ago_does_not_count() -> None:
    """Two of these were in another hour."""
    past = failures("aa", ago=HOUR + 1)
    past = avoidance.noted(past, "a", "Hang", NOW)
    assert not avoidance.stands_out(past, "a", {"a", "b"}, NOW)
    assert [one.reason for one in avoidance.noted(failures("aa", ago=25 * HOUR), "b", "Hang", NOW)] == ["Hang"]


def test_what_is_remembered_is_bounded() -> None:
    """A job that goes through a thousand losses has no larger status for it."""
    assert len(failures("abc" * 100)) == avoidance.KEPT


@pytest.mark.parametrize(("known", "hours"), [(1, 1), (3, 1), (5, 1), (6, 2), (9, 4), (60, 24)])
def test_the_time_doubles_up_to_a_day(known, hours) -> None:
    """With every three failures that are on record, which is as many as it takes to be avoided again."""
    [made] = avoidance.avoiding((), failures("a" * known), "a", "PodLost", NOW)
    assert (made.node, made.reason, made.failures) == ("a", "PodLost", known)
    assert seconds(made.until) - NOW == hours * HOUR


def test_when_the_time_is_over_the_node_is_allowed_again() -> None:
    """And avoided anew it is named once."""
    made = avoidance.avoiding((), failures("aaa"), "a", "PodLost", NOW)
    assert avoidance.in_force(made, NOW + HOUR - 1) == made
    assert avoidance.in_force(made, NOW + HOUR) == ()
    assert len(avoidance.avoiding(made, failures("aaaa"), "a", "Hang", NOW)) == 1


@pytest.mark.parametrize(
    ("already", "used", "expected"),
    [(0, 2, True), (1, 2, False), (1, 7, False), (1, 8, True), (2, 8, False), (16, 1000, False)],
)
def test_only_a_share_of_the_nodes_is_avoided(already, used, expected) -> None:
    """One of four at a time, and sixteen at most."""
    avoided: avoidance.Avoided = ()
    for number in range(already):
        avoided = avoidance.avoiding(avoided, (), f"n{number}", "PodLost", NOW)
    assert avoidance.bearable(avoided, {f"n{number}" for number in range(used)}) is expected


@pytest.mark.parametrize(
    ("reason", "number", "expected"),
    [
        pytest.param(names.REASON_HANG, None, True, id="hang"),
        pytest.param(names.REASON_KILLED, signal.SIGBUS, True, id="bus-error"),
        pytest.param(names.REASON_KILLED, signal.SIGSEGV, True, id="segmentation-fault"),
        pytest.param(names.REASON_KILLED, signal.SIGKILL, False, id="killed-for-its-memory"),
        pytest.param(names.REASON_KILLED, signal.SIGABRT, False, id="its-own-assertion"),
        pytest.param(names.REASON_USER_ERROR, None, False, id="exception"),
        pytest.param(names.REASON_PEER_LOST, None, False, id="another-was-lost"),
        pytest.param(names.REASON_NON_FINITE_LOSS, None, False, id="numerics"),
    ],
)
def test_what_speaks_against_a_node(reason, number, expected) -> None:
    """What broken machines do; not what code does."""
    assert avoidance.speaks_against_node(Failure(reason, "", 1, signal=number)) is expected
