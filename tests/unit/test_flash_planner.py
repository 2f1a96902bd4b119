"""From whose memory each shard comes."""

import pytest

from llmtrain_operator.contract.wire import Avoid, Void
from llmtrain_trainer.flash.header import Edition
from llmtrain_trainer.flash.planner import Entry, Inventory, allowed, durable_step, newest


def member(number, *shards, durable=-1):
    """`shards`: (step, round, world, rank)."""
    entries = tuple(Entry(Edition(step, at, world), rank, f"s{step}-{rank}", "m") for step, at, world, rank in shards)
    return Inventory(number, f"host-{number}:1", entries, durable)


def chosen(found):
    """Edition, and of each rank the members it can be had from."""
    edition, shards = found
    return edition, [[location.member for location in where] for where in shards]


def test_the_newest_step_that_is_complete_is_taken():
    """Step 9 is on one member only: both go on from 8, each from its own memory first, then from its buddy's."""
    there = [
        member(0, (8, 1, 2, 0), (9, 1, 2, 0), (8, 1, 2, 1)),
        member(1, (8, 1, 2, 1), (8, 1, 2, 0)),
    ]
    assert chosen(newest(there, 0)) == (Edition(8, 1, 2), [[0, 1], [0, 1]])
    assert chosen(newest(there, 1)) == (Edition(8, 1, 2), [[1, 0], [1, 0]])


def test_a_lost_member_is_made_up_for_by_its_buddy():
    """One of three is gone, its shard lies with another: the round of two has all."""
    there = [member(0, (5, 1, 3, 0), (5, 1, 3, 2)), member(1, (5, 1, 3, 1), (5, 1, 3, 0))]
    assert chosen(newest(there, 1)) == (Edition(5, 1, 3), [[1, 0], [1], [0]])


def test_shards_of_different_rounds_are_not_mixed():
    """The same step of two rounds may differ in its last bits."""
    assert newest([member(0, (5, 1, 2, 0)), member(1, (5, 2, 2, 1))], 0) is None


def test_of_the_same_step_the_newer_round_counts():
    """It is what training went on from."""
    assert newest([member(0, (5, 1, 1, 0), (5, 2, 1, 0))], 0)[0] == Edition(5, 2, 1)


def test_what_turned_out_bad_is_not_taken_again():
    """Then the next best, and when none is left the next older edition."""
    there = [member(0, (5, 1, 1, 0), (4, 1, 1, 0)), member(1, (5, 1, 1, 0))]
    first = newest(there, 0)[1][0][0]
    assert chosen(newest(there, 0, {first.name})) == (Edition(5, 1, 1), [[1]])
    second = newest(there, 0, {first.name})[1][0][0]
    assert newest(there, 0, {first.name, second.name})[0] == Edition(4, 1, 1)


def test_durable_storage_fills_gaps_of_the_same_edition_only():
    """A checkpoint of another round, or another step, has other bits."""
    there = [member(0, (5, 1, 2, 0))]
    assert chosen(newest(there, 0, durable=Edition(5, 1, 2))) == (Edition(5, 1, 2), [[0, None], [None]])
    assert newest(there, 0, durable=Edition(5, 2, 2)) is None
    assert newest(there, 0) is None


def test_what_is_proved_goes_before_what_is_near():
    """A copy without checksums may have been damaged unnoticed; if there is another that has them, it is taken."""
    near = Inventory(0, "", (Entry(Edition(5, 1, 1), 0, "s", "m", proved=False),))
    assert chosen(newest([near, member(1, (5, 1, 1, 0))], 0)) == (Edition(5, 1, 1), [[1, 0]])
    assert chosen(newest([near], 0)) == (Edition(5, 1, 1), [[0]])


def test_readers_spread_over_those_who_have_it():
    """A thousand readers of one shard must not all ask the same member."""
    there = [member(number, (5, 1, 1, 0)) for number in range(3)]
    firsts = [newest(there, reader)[1][0][0].member for reader in (3, 4, 5)]
    assert sorted(firsts) == [0, 1, 2]


@pytest.mark.parametrize("reader", range(4))
def test_all_readers_plan_for_the_same_edition(reader):
    """Whatever each can reach by itself: a step that only one could restore would tear the job apart."""
    there = [Inventory(0, "", (Entry(Edition(6, 1, 1), 0, "s", "m"),)), member(1, (5, 1, 1, 0))]
    assert newest(there, reader)[0] == Edition(6, 1, 1)


def test_the_newest_durable_step_that_anyone_knows():
    """-1 where nobody knows of any."""
    assert durable_step([member(0, durable=3), member(1)]) == 3
    assert durable_step([]) == -1


def test_what_was_rolled_back_from_is_not_taken_though_it_is_newer():
    """A member that was out of the rounds since still has it; what they came to is taken."""
    there = [member(0, (9, 1, 1, 0)), member(1, (6, 3, 1, 0))]
    assert newest(there, 0)[0] == Edition(9, 1, 1)
    assert newest(allowed(there, Avoid(void=(Void(5, 2),))), 0)[0] == Edition(6, 3, 1)
