"""Who gets how many members of a cluster that several jobs share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_operator.autoscale import Claim, Sample, fit, share


def curve(shared=4.0, alone=0.0, each=0.0):
    return fit([Sample(n, shared / n + alone + each * (n - 1), 200, 0.0) for n in (1, 2, 4, 8, 16)])


GOOD, FLAT = curve(), curve(alone=4.0)


@pytest.mark.parametrize(
    ("claims", "members", "given"),
    [
        pytest.param([Claim("a", 0, 0, 1, 8)], 5, {"a": 5}, id="one job takes all"),
        pytest.param([Claim("a", 0, 0, 1, 8)], 20, {"a": 8}, id="but no more than its cap"),
        pytest.param([Claim("a", 0, 0, 4, 8)], 3, {"a": 0}, id="not less than its minimum"),
        pytest.param(
            [Claim("low", 0, 0, 2, 8, 8), Claim("high", 9, 5, 2, 6)], 8, {"low": 2, "high": 6}, id="priority takes"
        ),
        pytest.param(
            [Claim("low", 0, 0, 2, 8, 2), Claim("high", 9, 5, 7, 8)],
            8,
            {"low": 8, "high": 0},
            id="but no running job's minimum",
        ),
        pytest.param(
            [Claim("old", 0, 0, 3, 4), Claim("new", 9, 5, 3, 4)], 4, {"old": 0, "new": 4}, id="priority begins first"
        ),
        pytest.param(
            [Claim("big", 9, 0, 6, 8), Claim("small", 0, 5, 1, 8)],
            4,
            {"big": 0, "small": 4},
            id="what does not fit blocks nobody",
        ),
        pytest.param(
            [Claim("flat", 0, 0, 1, 8, curve=FLAT), Claim("good", 0, 5, 1, 8, curve=GOOD)],
            9,
            {"flat": 1, "good": 8},
            id="among equals the one that gains more",
        ),
        pytest.param(
            [Claim("flat", 9, 0, 1, 8, curve=FLAT, least=0.2), Claim("good", 0, 5, 1, 8, curve=GOOD)],
            9,
            {"flat": 2, "good": 7},
            id="priority does not take what adds next to nothing",
        ),
        pytest.param(
            [Claim("a", 0, 0, 1, 4, 1, GOOD), Claim("b", 0, 5, 1, 4, 4, GOOD)],
            5,
            {"a": 1, "b": 4},
            id="among equals nobody is robbed for nothing",
        ),
    ],
)
def test_members_are_shared(claims, members, given):
    """By minimum, priority, and what they add."""
    assert share(claims, members) == given


@st.composite
def claims(draw):
    found = []
    for index in range(draw(st.integers(1, 6))):
        minimum = draw(st.integers(1, 4))
        shape = curve(alone=draw(st.floats(0, 4)), each=draw(st.floats(0, 0.5)))
        cap, holds = minimum + draw(st.integers(0, 8)), draw(st.integers(0, 12))
        found.append(Claim(f"j{index}", draw(st.integers(0, 2)), float(index), minimum, cap, min(holds, cap), shape))
    return found


@given(claims(), st.integers(0, 40))
def test_shares_are_fair_and_complete(jobs, members):
    """Never more than there is, nobody beyond its range, nothing idle that somebody who trains has room for."""
    shares = share(jobs, members)
    assert sum(shares.values()) <= members
    for each in jobs:
        assert shares[each.job] == 0 or each.minimum <= shares[each.job] <= each.cap
    idle = members - sum(shares.values())
    for each in jobs:
        assert idle == 0 or shares[each.job] == each.cap or (shares[each.job] == 0 and idle < each.minimum)


@given(claims(), st.integers(0, 40))
def test_priority_is_respected(jobs, members):
    """A job that has more than its minimum leaves no job of higher priority with less than it has use for."""
    shares = share(jobs, members)
    for low in jobs:
        for high in (each for each in jobs if each.priority > low.priority and shares[each.job]):
            more = shares[high.job] + 1
            if shares[low.job] > low.minimum and more <= high.cap:
                unit = high.curve.speed(high.minimum) / high.minimum
                speed, sizes = high.curve.speed, range(more, high.cap + 1)
                best = max((speed(n) - speed(more - 1)) / (n - more + 1) for n in sizes)
                assert best < high.least * unit * 1.001


@given(claims(), st.integers(1, 40))
def test_sharing_comes_to_rest(jobs, members):
    """Sharing again when everyone has what it was given changes nothing."""
    first = share(jobs, members)
    settled = [Claim(e.job, e.priority, e.since, e.minimum, e.cap, first[e.job], e.curve, e.least) for e in jobs]
    assert share(settled, members) == first
