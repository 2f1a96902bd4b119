"""What snapshots in memory mean for a job: where it goes on, whether it is protected, what is persisted at the end."""

import dataclasses

import pytest

from llmtrain_operator.api import FlashStatus, HolderStatus
from llmtrain_operator.contract.wire import Checkpoints, Failure, Flash
from llmtrain_operator.plan.flash import covered
from tests.support.elastic import STORAGE, Job, silent, training
from tests.support.planner import agent, pod


def status(*holders, copies=1):
    made = tuple(HolderStatus(uid=uid, buddies=tuple(buddies)) for uid, *buddies in holders)
    return FlashStatus(committed_step=5, copies=copies, holders=made)


@pytest.mark.parametrize(
    ("flash", "living", "expected"),
    [
        (status("ab", "bc", "ca"), "abc", True),
        (status("ab", "bc", "ca"), "bc", True),
        (status("ab", "bc", "ca"), "c", False),
        (status("abc", "bca", "cab", copies=2), "c", True),
        (status("a", "b", copies=0), "a", False),
        (status("a", "b", copies=0), "ab", True),
    ],
    ids=["all", "one-lost", "two-lost", "two-copies", "no-copies", "no-copies-all-there"],
)
def test_whether_those_who_are_left_have_everything(flash, living, expected):
    """Each member's snapshot has to lie with itself or with one of those that have a copy."""
    assert covered(flash, set(living)) is expected


def told(index, number=1, at=40, saved=30, **flash):
    said = {"step": at, "committed": at - 1, "copies": 1, "kept_by": ((index + 1) % 3,), "every": 1} | flash
    return training(index, number, at, checkpoints=Checkpoints(step=saved), flash=Flash(**said))


def trained(**fields):
    """A job of three whose members have told of their snapshots."""
    job = Job(**fields)
    job.look(*(told(index) for index in range(3)))
    return job


def test_the_committed_step_is_in_the_status():
    """With where the snapshots lie."""
    job = trained(checkpoint={})
    assert job.status.flash.committed_step == 39
    assert [len(holder.buddies) for holder in job.status.flash.holders] == [1, 1, 1]
    assert job.reason("Protected") == "MemoryCopies"
    assert job.reason("Degraded") == "AsExpected"


def test_a_copy_lies_where_its_member_says():
    """The first buddy had no room: whoever has it is the one to be counted on."""
    job = Job(checkpoint={})
    job.look(told(0), told(1, kept_by=(0,)), told(2, committed=None))
    planned = job.status.round.members[2].buddies[0]
    uids = [member.uid for member in job.status.round.members]
    assert [holder.buddies for holder in job.status.flash.holders] == [("u1",), ("u0",), (uids[planned],)]


def test_without_copies_a_lost_member_is_not_covered():
    """It is said what would help."""
    job = Job(checkpoint={})
    job.look(*(told(index, copies=0, kept_by=()) for index in range(3)))
    assert job.reason("Protected") == "NoCopies"
    assert "replicas" in job.message("Protected")


def test_copies_that_lag_are_told():
    """And taken back when they are up again."""
    job = Job(checkpoint={})
    job.look(*(told(index, committed=10) for index in range(3)))
    assert job.reason("Degraded") == "ReplicaLagging"
    job.look(*(told(index) for index in range(3)))
    assert job.reason("Degraded") == "AsExpected"
    job.look(*(told(index, trouble="no memory") for index in range(3)))
    assert (job.reason("Degraded"), job.message("Degraded")) == ("NoSnapshots", "no memory")


def test_a_new_round_keeps_what_is_committed_until_it_has_its_own():
    """What it began from still lies where it lay; of a round that began otherwise nothing is left."""
    job = trained(checkpoint=STORAGE)
    before = job.status.flash
    job.look(*(told(index, step=None, committed=None, kept=39) for index in range(3)))
    assert job.status.flash.committed_step == 39
    assert job.status.flash.holders == before.holders
    job.look(*(told(index, committed=None) for index in range(3)))
    assert job.status.flash.committed_step is None
    assert job.status.flash.holders == ()


def test_without_storage_the_others_go_on_at_once_from_memory():
    """One of three is lost: what it had lies with its buddy, so nobody waits for a replacement."""
    job = trained(checkpoint={})
    there = [agent(0), agent(1), silent(told(2))]
    job.look(*there, pods=(pod(0), pod(1)))
    job.look(*there[:2], pods=(pod(0), pod(1)))
    assert job.members == [0, 1]
    assert job.status.progress.step == 39


def test_without_copies_the_replacement_is_waited_for():
    """To begin again at step 0 with fewer would keep the others out."""
    job = Job(checkpoint={})
    job.look(*(told(index, copies=0, kept_by=()) for index in range(3)))
    there = [agent(0), agent(1)]
    job.look(*there, pods=(pod(0), pod(1)))
    job.look(*there, pods=(pod(0), pod(1)))
    assert job.members == []


def test_a_job_without_storage_grows_from_memory():
    """Those who come take nothing away; a smaller round would lose what those have who go."""
    job = trained(checkpoint={})
    job.fields["nodes"] = {"min": 2, "max": 4, "desired": 4}
    job.look(*(told(index) for index in range(3)), agent(3), pods=tuple(map(pod, range(4))), after=40)
    assert job.status.round.ending is not None
    shrinking = trained(checkpoint={})
    shrinking.fields["nodes"] = {"min": 2, "max": 3, "desired": 2}
    shrinking.look(*(told(index) for index in range(3)))
    assert shrinking.status.round.ending is None
    assert shrinking.reason("Resizing") == "AtNextRound"


def test_the_next_round_has_everybody_whose_memory_it_needs():
    """Also those that are not wanted any more: without them the job would begin again at step 0."""
    job = trained(checkpoint={})
    job.fields["nodes"] = {"min": 1, "max": 3, "desired": 1}
    job.look(*(told(index) for index in range(3)))
    assert job.reason("Resizing") == "AtNextRound"
    failed = agent(0, "failed", 1, failure=Failure("Killed", "signal 9", 1, rank=0, step=40))
    job.look(failed, told(1), told(2))
    for _ in range(3):
        job.look(*(agent(index, "joining", 1) for index in range(3)))
    held = {member.uid for member in job.status.round.members}
    assert len(held) >= 2
    assert covered(job.status.flash, held)


def test_who_holds_memory_is_waited_for_but_not_for_ever():
    """Its workers take some seconds to end; a member that never comes back costs what it held."""
    job = Job(checkpoint={})
    job.look(*(told(index, copies=0, kept_by=()) for index in range(3)))
    stuck = agent(2, "stopped", 1)
    failed = agent(0, "failed", 1, failure=Failure("Killed", "signal 9", 1, rank=0, step=40))
    job.look(failed, told(1, copies=0, kept_by=()), stuck)
    there = agent(0, "joining", 1), agent(1, "joining", 1), stuck
    job.look(*there, after=8)
    assert (job.members, job.decided.actions) == ([], ())
    job.look(*there, after=60)
    assert job.members == [0, 1]


def test_a_member_that_has_not_left_a_round_of_lost_peers_may_be_the_lost_one():
    """Its node is dead and its silence not yet noticed: a round with it would be lost in the same way."""
    job = trained(checkpoint={})
    lost = [agent(i, "failed", 1, failure=Failure("PeerLost", "connection reset", 1, rank=i, step=40)) for i in (0, 1)]
    job.look(*lost, told(2))
    job.look(*lost, told(2), after=3)
    assert (job.status.restarts, job.status.failures_counted) == (1, 0)
    left = [agent(index, "joining", 1) for index in (0, 1)]
    job.look(*left, told(2))
    assert job.members == []
    job.look(*left, silent(told(2)))
    job.look(*left, silent(told(2), 6), after=6)
    assert job.members == [0, 1]


def test_the_lost_peer_is_not_taken_for_what_it_has_in_memory_either():
    """Nobody has a copy of it: it is waited for, until it is known to be gone."""
    job = Job(checkpoint={})
    job.look(*(told(index, copies=0, kept_by=()) for index in range(3)))
    lost = [agent(i, "failed", 1, failure=Failure("PeerLost", "connection reset", 1, rank=i, step=40)) for i in (0, 1)]
    alone = told(2, copies=0, kept_by=())
    for _ in range(2):
        job.look(*lost, alone, after=3)
    left = [agent(index, "joining", 1) for index in (0, 1)]
    for _ in range(4):
        job.look(*left, alone, after=3)
        assert job.members == []


def test_suspending_asks_those_who_have_memory():
    """A pod that was never in a round has nothing to write."""
    job = trained(checkpoint=STORAGE)
    failed = [agent(i, "failed", 1, failure=Failure("Killed", "signal 9", 1, rank=i, step=40)) for i in (1, 2)]
    pods = pod(0, uid="new", incarnation=2, name="j-0-2"), pod(1), pod(2)
    job.look(*failed, pods=pods)
    job.fields["suspend"] = True
    newcomer = dataclasses.replace(agent(0), uid="new")
    job.look(newcomer, *(agent(index, "joining", 1) for index in (1, 2)), pods=pods)
    assert job.status.state == "Suspended"
    assert {directive.persist for directive in job.decided.directives.values()} == {"u1"}


def test_a_job_that_went_on_from_storage_does_not_lag_from_its_first_step():
    """What it took up long ago is no lag."""
    job = Job(checkpoint=STORAGE)
    said = Checkpoints(step=1000, restored_step=1000)
    flash = Flash(step=1001, committed=None, every=1)
    job.look(*(training(index, 1, 1001, checkpoints=said, flash=flash) for index in range(3)))
    assert job.reason("Degraded") == "AsExpected"


def failing(index):
    """Its workers have ended with an error that no restart cures."""
    return agent(index, "failed", 1, failure=Failure("DataCorrupt", "line 7", 1, rank=index, step=40))


def test_a_job_that_fails_persists_what_is_in_memory_first():
    """One member writes, the others hand out theirs; whoever fixes the data goes on where it was."""
    job = trained(checkpoint=STORAGE)
    for _ in range(2):
        job.look(*map(failing, range(3)))
    assert job.status.state == "Failed"
    assert {directive.persist for directive in job.decided.directives.values()} == {"u0"}


@pytest.mark.parametrize(("checkpoint", "saved"), [(STORAGE, 39), ({}, None)], ids=["saved", "no-storage"])
def test_what_storage_has_or_cannot_have_is_not_persisted(checkpoint, saved):
    """There is nothing to be done then."""
    job = Job(checkpoint=checkpoint)
    job.look(*(told(index, committed=39, saved=saved) for index in range(3)))
    for _ in range(2):
        job.look(*map(failing, range(3)))
    assert job.status.state == "Failed"
    assert {directive.persist for directive in job.decided.directives.values()} == {""}


def test_members_are_named_their_buddies():
    """The best first."""
    job = Job(checkpoint={})
    assert [member.buddies for member in job.status.round.members] == [(1, 2), (2, 0), (0, 1)]
    assert job.decided.directives["u0"].round.buddies == ((1, 2), (2, 0), (0, 1))
