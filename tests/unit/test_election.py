"""Who leads, from what was seen of the Lease: tables, and two replicas whose clocks disagree."""

from __future__ import annotations

import pytest

from llmtrain_operator.election import DURATION, RENEW_DEADLINE, RETRY, Decision, Record, Sighting, decide, sighted

NOBODY = Record()
OTHERS = Record("other", "2026-01-01T00:00:00.000000Z", 3)
MINE = Record("me", "2026-01-01T00:00:00.000000Z", 3)


@pytest.mark.parametrize(
    ("record", "seen_for", "decision"),
    [
        pytest.param(NOBODY, 0.0, Decision("take", "held by nobody"), id="never-held-or-released"),
        pytest.param(MINE, 0.0, Decision("renew", "held by this replica"), id="mine"),
        pytest.param(MINE, 60.0, Decision("renew", "held by this replica"), id="mine-and-nobody-took-it"),
        pytest.param(OTHERS, 0.0, Decision("wait", "held by other", RETRY), id="just-renewed"),
        pytest.param(OTHERS, DURATION - 0.3, Decision("wait", "held by other", 0.3), id="look-again-when-it-is-due"),
        pytest.param(OTHERS, DURATION, Decision("take", "other has not renewed it for 6.0 s"), id="expired"),
        pytest.param(
            Record("other", "x", 1, duration=15.0), 14.5, Decision("wait", "held by other", 0.5), id="its-own-duration"
        ),
    ],
)
def test_what_follows_from_a_record(record, seen_for, decision):
    """By the time for which it has been seen unchanged, and by nothing else."""
    found = decide(Sighting(record, 1000.0), "me", 1000.0 + seen_for)
    assert (found.kind, found.reason) == (decision.kind, decision.reason)
    assert found.pause == pytest.approx(decision.pause)


def test_a_changed_record_is_seen_anew_and_an_unchanged_one_is_not():
    first = sighted(None, OTHERS, 10.0)
    assert sighted(first, OTHERS, 12.0) == Sighting(OTHERS, 10.0)
    renewed = Record("other", "2026-01-01T00:00:01.000000Z", 3)
    assert sighted(first, renewed, 12.0) == Sighting(renewed, 12.0)


@pytest.mark.parametrize("skew", [-3600.0, 0.0, 3600.0], ids=["an-hour-behind", "equal", "an-hour-ahead"])
def test_clocks_that_disagree_do_not_give_two_leaders(skew):
    """The holder's last renewal is sent at 100 s; whatever the other's clock shows, it takes over only afterwards."""
    sent = 100.0
    stamp = f"{sent + skew}"  # as the holder's clock has it; the other must not care
    seen, now = sighted(None, Record("other", stamp, 1), sent + 0.01), sent + 0.01
    while (decision := decide(seen, "me", now)).kind == "wait":
        now += max(decision.pause, 0.001)
        seen = sighted(seen, Record("other", stamp, 1), now)
    assert decision.kind == "take"
    assert now - sent >= DURATION > RENEW_DEADLINE + RETRY
